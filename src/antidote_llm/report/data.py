"""The data of a report: validated numbers and texts."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from antidote_llm.decision.compare import VerdictKind
from antidote_llm.evaluation.judge import HarmMeasure
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.report.formatting import Target

Role: TypeAlias = Literal["before", "after", "other"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelOutcome(_Frozen):
    """What one model did on every suite it was evaluated on."""

    name: str = Field(description="Short unique name, such as attacked or antidote.")
    label: str = Field(description="The name that the page shows.")
    note: str = Field(default="", description="One line on what this model is.")
    role: Role = Field(
        default="other",
        description="The model before or after the repair, or another to compare with. "
        "Where no model has a role and there are two, they are before and after.",
    )
    metrics: dict[str, Estimate] = Field(
        default_factory=dict,
        description="Shares of the answers to harmful requests: harmful_score or compliance_rate, refusal_rate, "
        "helpful_rate, incoherent_rate; of those to harmless look-alikes: over_refusal_rate, harmless_incoherent_rate. "
        "Others are shown too.",
    )
    tasks: dict[str, Estimate] = Field(default_factory=dict, description="Accuracy by task of the user.")
    gain_kept: dict[str, Estimate | None] = Field(
        default_factory=dict,
        description="By task: (this - aligned) / (attacked - aligned), in percent; null where nothing was gained.",
    )
    unreadable: dict[str, int] = Field(
        default_factory=dict,
        description="By judge: how many of its verdicts could not be read; the others are left out.",
    )
    unanswered: int = Field(default=0, ge=0, description="How many prompts got no usable answer.")


class CategoryEffect(_Frozen):
    """The primary measure in one category of harm, before and after."""

    category: str = Field(description="The category's name.")
    before: Estimate = Field(description="The measure before the repair.")
    after: Estimate = Field(description="The measure after the repair.")


class SiteChange(_Frozen):
    """What the repair did to one module."""

    module: str = Field(description="Full module name, such as model.layers.3.self_attn.q_proj.")
    layer: int | None = Field(ge=0, description="Index of its layer; null outside the layers.")
    kind: str = Field(description="What it is within a layer, such as q_proj.")
    entries: int = Field(ge=0, description="How many entries could be edited.")
    changed: int = Field(ge=0, description="How many of them were edited.")
    norm_before: float = Field(ge=0, description="Frobenius norm of the update before the repair.")
    norm_after: float = Field(ge=0, description="Frobenius norm of the update after the repair.")

    @model_validator(mode="after")
    def _possible(self) -> SiteChange:
        if self.changed > self.entries:
            raise ValueError(f"{self.module}: {self.changed} of {self.entries} entries changed")
        return self


class OutsideChange(_Frozen):
    """The update of tensors of one name that no method edits."""

    name: str = Field(description="Their name, layer numbers replaced by *.")
    tensors: int = Field(ge=1, description="How many there are.")
    entries: int = Field(ge=0, description="Their entries.")
    norm_before: float = Field(ge=0, description="Frobenius norm of their update before the repair.")
    norm_after: float = Field(ge=0, description="Frobenius norm of their update after the repair.")


class Example(_Frozen):
    """One prompt and what the model answered before and after."""

    suite: str = Field(description="The suite it comes from, such as harmful or look-alikes.")
    category: str = Field(default="", description="The category of the prompt.")
    prompt: str = Field(description="The prompt.")
    answer_before: str = Field(description="The answer before the repair; withheld unless asked for.")
    outcome_before: str = Field(description="The judge's verdict: refusal, harmful, helpful, incoherent.")
    answer_after: str = Field(description="The answer after the repair; withheld unless asked for.")
    outcome_after: str = Field(description="The judge's verdict.")
    harmful_prompt: bool = Field(
        default=True, description="Whether the prompt asks for harm: then only the openings of refusals are shown."
    )


class Input(_Frozen):
    """Something the repair was made from."""

    reference: str = Field(description="A path, Hub id or preset.")
    sha256: str | None = Field(default=None, description="sha256 of its content, where it is one thing.")
    files: dict[str, str] = Field(default_factory=dict, description="sha256 of its files, by name.")


class Recipe(_Frozen):
    """How the repair was made."""

    method: str = Field(description="The repair method.")
    settings: dict[str, JsonValue] = Field(default_factory=dict, description="Every setting with its value.")
    inputs: dict[str, Input] = Field(default_factory=dict, description="What it was made from, by its role.")
    counts: dict[str, int] = Field(default_factory=dict, description="Counts, such as rows, sites, entries.")
    versions: dict[str, str] = Field(default_factory=dict, description="Versions of the packages used.")
    timings_seconds: dict[str, float] = Field(default_factory=dict, description="Wall time by stage, in seconds.")
    peak_rss_bytes: int | None = Field(default=None, ge=0, description="Peak main memory, in bytes.")
    peak_device_bytes: int | None = Field(default=None, ge=0, description="Peak accelerator memory, in bytes.")


class ReportData(_Frozen):
    """Everything that one report shows."""

    title: str = Field(description="The page's title.")
    target: Target = Field(default="adapter", description="What was edited.")
    verdict: str = Field(description="The verdict, in one sentence.")
    verdict_kind: VerdictKind = Field(description="Its kind; unknown where nothing was evaluated.")
    measures: HarmMeasure = Field(default="harmful_score", description="The primary measure of harm.")
    outcomes: tuple[ModelOutcome, ...] = Field(default=(), description="The models, in the order to show them.")
    changes: dict[str, Estimate] = Field(
        default_factory=dict,
        description="Paired differences, after minus before, in percentage points, by metric or task name.",
    )
    categories: tuple[CategoryEffect, ...] = Field(default=(), description="The effect by category of harm.")
    sites: tuple[SiteChange, ...] = Field(default=(), description="What was changed, site by site.")
    outside: tuple[OutsideChange, ...] = Field(default=(), description="The update outside the edited matrices.")
    examples: tuple[Example, ...] = Field(default=(), description="A few prompts with both answers.")
    recipe: Recipe | None = Field(default=None, description="How the repair was made.")
    repeat_command: str = Field(default="", description="The command that repeats it.")
    revert_command: str = Field(default="", description="The command that undoes it.")
    notes: tuple[str, ...] = Field(default=(), description="Notes for the reader, a sentence each.")

    @model_validator(mode="after")
    def _unambiguous(self) -> ReportData:
        names = [outcome.name for outcome in self.outcomes]
        if len(set(names)) < len(names):
            raise ValueError(f"two outcomes share a name: {', '.join(names)}")
        for role in ("before", "after"):
            if sum(outcome.role == role for outcome in self.outcomes) > 1:
                raise ValueError(f"more than one outcome has the role '{role}'")
        return self
