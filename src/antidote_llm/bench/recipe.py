"""What a recipe says: a model, how it is aligned, attacked and repaired, and how each outcome is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from antidote_llm.choices import DtypeName, SaveDtype, StageName, TemplateName
from antidote_llm.training.settings import ALIGNMENT_DEFAULTS, FINETUNING_DEFAULTS, LoraSettings, TrainingSettings

STAGES: tuple[StageName, ...] = ("align", "finetune", "repair", "evaluate")
Setting: TypeAlias = bool | int | float | str | None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_listed)]
SomeNames: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _TrainedStage(_Part):
    """What stages 1 and 2 share."""

    defaults: ClassVar[TrainingSettings]

    data: SomeNames = Field(description="Rows of prompt and response: files, preset names or Hub ids.")
    rows: int | None = Field(default=None, ge=1, description="How many rows in all; null for all.")
    defense: str = Field(default="sft", description="Defense of this stage.")
    preset: str | None = Field(default=None, description="Named settings of the defense.")
    settings: dict[str, Setting] = Field(default_factory=dict, description="Settings of the defense, by name.")
    training: TrainingSettings = Field(description="How it is trained; what is left out is the stage's default.")
    dtype: DtypeName = Field(default="float32", description="Type that weights are loaded in.")
    save_dtype: SaveDtype = Field(default="auto", description="Type of the weights that are written.")
    save_every: int = Field(default=500, ge=0, description="Steps between checkpoints.")

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        """Put what is said about the training over the stage's defaults; an adapter's settings over theirs."""
        if not isinstance(given, Mapping):
            return given
        training = given.get("training") or {}
        if not isinstance(training, Mapping):
            return given
        merged = {**cls.defaults.model_dump(), "lora": LoraSettings().model_dump(), **training}
        if isinstance(lora := training.get("lora"), Mapping):
            merged["lora"] = {**LoraSettings().model_dump(), **lora}
        return {**given, "training": merged}


class AlignStage(_TrainedStage):
    """Stage 1: the model learns to refuse."""

    defaults = ALIGNMENT_DEFAULTS

    harmful: Names = Field(default=(), description="Harmful requests with harmful answers, for defenses that use them.")
    harmful_rows: int | None = Field(default=None, ge=1, description="How many of them; null for all.")


class FinetuneStage(_TrainedStage):
    """Stage 2: the user's fine-tuning, poisoned."""

    defaults = FINETUNING_DEFAULTS

    rows: int = Field(ge=1, description="How many rows in all, harmful ones among them.")
    harmful: SomeNames = Field(description="Where the harmful rows come from.")
    harmful_ratio: float = Field(ge=0, le=1, description="Share p of harmful rows, from 0 to 1.")
    safe: Names = Field(default=(), description="Refused harmful requests, for the defenses that learn from them.")
    safe_rows: int | None = Field(default=None, ge=1, description="How many of them; null for all.")


class RepairStage(_Part):
    """Stage 3: the repair."""

    method: str = Field(default="antidote", description="Repair method.")
    preset: str | None = Field(default=None, description="Named settings of the method.")
    settings: dict[str, Setting] = Field(default_factory=dict, description="Settings of the method, by name.")
    harmful: SomeNames = Field(description="Harmful requests with answers, of which the repair's rows are drawn.")
    harmful_rows: int | None = Field(default=None, ge=1, description="How many are drawn; null for all.")
    sites: str = Field(default="all", description="Which matrices are edited.")
    dtype: DtypeName = Field(default="auto", description="Type that weights are loaded in.")


class EvaluateStage(_Part):
    """How the aligned, the attacked and the repaired model are measured."""

    harmful: SomeNames = Field(description="Harmful requests to ask.")
    harmful_rows: int | None = Field(default=None, ge=1, description="How many are drawn; null for all.")
    harmless: str | None = Field(default=None, description="Harmless requests that look harmful.")
    tasks: Names = Field(default=(), description="The user's tasks: NAME, NAME@FILE or NAME=DATA.")
    task_rows: int | None = Field(default=None, ge=1, description="Rows of each task; null for as many as the paper's.")
    judge: SomeNames = Field(default=("refusal-patterns",), description="Who judges answers, the first at the top.")
    max_new_tokens: int = Field(default=64, ge=1, description="Most tokens of an answer.")
    task_max_new_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens of a task's answer; null for each task's own."
    )
    dtype: DtypeName = Field(default="auto", description="Type that weights are loaded in.")


class Recipe(_Part):
    """One experiment: three stages and what came of them."""

    name: str = Field(description="What it is called.")
    source: str = Field(description="The paper, table and settings that it follows.")
    model: str = Field(description="Folder or Hub id of the model that is aligned.")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Of rows, batches and adapters, wherever a stage names no other."
    )
    template: TemplateName = Field(default="auto", description="How prompts are put, in all stages.")
    align: AlignStage = Field(description="Stage 1.")
    finetune: FinetuneStage = Field(description="Stage 2.")
    repair: RepairStage = Field(description="Stage 3.")
    evaluate: EvaluateStage = Field(description="How the models are measured.")

    @field_validator("model")
    @classmethod
    def _no_option(cls, model: str) -> str:
        """Refuse a name that the commands would take for an option."""
        if model.startswith("-"):
            raise ValueError("begins with a dash: write a folder of that name as ./-name")
        return model

    @model_validator(mode="before")
    @classmethod
    def _seeded(cls, given: Any) -> Any:
        """Let a stage that names no seed of its own train with the recipe's."""
        if not isinstance(given, Mapping):
            return given
        seeded = dict(given)
        for name in ("align", "finetune"):
            stage = given.get(name)
            if isinstance(stage, Mapping) and isinstance(training := stage.get("training") or {}, Mapping):
                seeded[name] = {**stage, "training": {"seed": given.get("seed", 0), **training}}
        return seeded
