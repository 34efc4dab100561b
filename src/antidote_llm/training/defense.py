"""What a defense of stage 1 or 2 is: one typed function that turns a stage's data into a lesson.

As for repair methods, the function's keyword parameters are its settings, and another package adds a defense through
the entry-point groups ``antidote_llm.alignment_defenses`` and ``antidote_llm.finetuning_defenses``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

from antidote_llm.choices import TrainingStage
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, TokenizedRow
from antidote_llm.errors import UserError
from antidote_llm.methods import Method, named, registered, settings_model
from antidote_llm.training.batches import Example, examples_of
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.objective import Objective, Trained
from antidote_llm.training.settings import TrainingSettings
from antidote_llm.training.trainer import RunOptions, TrainingResult, train

# What a defense learns from beside the stage's own rows: harmful requests with harmful answers, or safe rows.
Companion: TypeAlias = Literal["harmful", "safe"]

COMMANDS: Mapping[TrainingStage, str] = {"alignment": "align", "finetuning": "finetune"}
COMPANION_OF: Mapping[TrainingStage, Companion] = {"alignment": "harmful", "finetuning": "safe"}


@dataclass(frozen=True)
class StageData:
    """What a stage learns from.

    Attributes:
        renderer: Turns records into tokens.
        rows: The alignment data (harmful requests refused, harmless ones answered), or the user's rows.
        companion: In stage 1 harmful requests with harmful answers, in stage 2 safe rows; empty where none are given.
    """

    renderer: Renderer
    rows: Sequence[Record]
    companion: Sequence[Record] = ()

    @cached_property
    def rendered(self) -> list[TokenizedRow]:
        """The stage's own rows as tokens."""
        return self.renderer.rows(self.rows)

    @cached_property
    def rendered_companion(self) -> list[TokenizedRow]:
        """The rows beside them as tokens."""
        return self.renderer.rows(self.companion)

    def examples(self, training: TrainingSettings) -> list[Example]:
        """Return the stage's own rows as examples."""
        return examples_of(self.rendered, training, [record.origin for record in self.rows])

    def companion_examples(self, training: TrainingSettings) -> list[Example]:
        """Return the rows beside them as examples."""
        return examples_of(self.rendered_companion, training, [record.origin for record in self.companion])


@dataclass(frozen=True)
class TrainingJob:
    """What the trainer is given.

    Attributes:
        examples: The rows; each may carry further rows under names of their own.
        objective: What is minimised.
        training: How it is trained.
    """

    examples: Sequence[Example]
    objective: Objective
    training: TrainingSettings


@dataclass(frozen=True)
class Cost:
    """What a defense costs beside plain fine-tuning, as plans count it.

    Attributes:
        passes: The work of a step, in steps of plain fine-tuning.
        graphs: What is kept for the backward pass, in forward passes of plain fine-tuning.
        copies: How many copies of the trained weights lie beside them.
    """

    passes: float = 1.0
    graphs: float = 1.0
    copies: float = 0.0


PLAIN = Cost()


@dataclass(frozen=True)
class Defense(Method):
    """A registered defense.

    Attributes:
        stage: Where it works.
        needs_companion: Whether it learns from rows beside the stage's own.
        cost: What it costs.
    """

    stage: TrainingStage
    needs_companion: bool
    cost: Cost

    @property
    def companion_option(self) -> str:
        """The option that names the rows beside the stage's own."""
        return f"--{COMPANION_OF[self.stage]}"

    def require_fitting(self, companion: Sequence[Record]) -> None:
        """Refuse rows beside the stage's own that are missing, or not used by this defense.

        Raises:
            UserError: Names the option.
        """
        if self.needs_companion and not companion:
            raise UserError(f"--defense {self.name} learns from further rows: pass {self.companion_option} DATA")
        if companion and not self.needs_companion:
            raise UserError(f"{self.companion_option} is not used by --defense {self.name}: leave it out")

    def siblings(self) -> Iterable[Method]:
        """Return the defenses of the same stage."""
        return defenses(self.stage).values()

    def lesson(self, data: StageData, training: TrainingSettings, settings: BaseModel) -> TrainingJob:
        """Turn a stage's data into what the trainer is given.

        Raises:
            UserError: The data do not fit the defense, or a row has nothing to learn from.
        """
        self.require_fitting(data.companion)
        lesson: TrainingJob = self.function(data, training, **self.arguments(settings))
        return lesson


@dataclass(frozen=True)
class StageResult:
    """What a stage made.

    Attributes:
        model: The model, wrapped in adapters where it trained some.
        training: What the run reported.
        trainable_parameters: How many weights were trained.
    """

    model: Trained
    training: TrainingResult
    trainable_parameters: int


@dataclass(frozen=True)
class _Registration:
    stage: TrainingStage
    needs_companion: bool
    cost: Cost
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, function: Callable[..., TrainingJob]) -> Defense:
        settings = settings_model(function, {})
        return Defense(
            function.__name__, function, settings, self.stage, self.needs_companion, self.cost, presets=self.presets
        )


def alignment_defense(
    *,
    needs_harmful: bool = False,
    cost: Cost = PLAIN,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., TrainingJob]], Defense]:
    """Register a function of (data, training, *, settings) as a defense of stage 1."""
    return _Registration("alignment", needs_harmful, cost, presets or {})


def finetuning_defense(
    *,
    needs_safe: bool = False,
    cost: Cost = PLAIN,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., TrainingJob]], Defense]:
    """Register a function of (data, training, *, settings) as a defense of stage 2."""
    return _Registration("finetuning", needs_safe, cost, presets or {})


@cache
def defenses(stage: TrainingStage) -> Mapping[str, Defense]:
    """Return every registered defense of a stage by name."""
    return registered(f"antidote_llm.{stage}_defenses", Defense, "defense")


def defense_named(stage: TrainingStage, name: str) -> Defense:
    """Return a defense.

    Raises:
        UserError: Lists the known ones, with the nearest, or names the command of the other stage.
    """
    known, (other,) = defenses(stage), COMMANDS.keys() - {stage}
    if name not in known and name in defenses(other):
        raise UserError(
            f"--defense {name} is one of antidote {COMMANDS[other]}: for antidote {COMMANDS[stage]} name one of "
            f"{', '.join(known)}"
        )
    return named(known, name, "--defense", f"{stage} defense")


def run_stage(
    model: Trained,
    data: StageData,
    defense: Defense,
    training: TrainingSettings,
    settings: BaseModel | None = None,
    running: RunOptions | None = None,
) -> StageResult:
    """Train a model in place with a defense, or put adapters on it and train those.

    Args:
        model: What the stage starts from.
        data: What it learns from.
        defense: How it is defended.
        training: How it is trained; ``training.lora`` decides between adapters and all weights.
        settings: The defense's settings; its defaults where not given.
        running: How the run is watched and kept.

    Raises:
        UserError: The data do not fit the defense, or a row has nothing to learn from.
    """
    lesson = defense.lesson(data, training, settings or defense.configure({}))
    trained = model if training.lora is None else attach_lora(model, training.lora, training.seed)
    trainable = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    result = train(trained, lesson.examples, lesson.training, lesson.objective, running)
    return StageResult(trained, result, trainable)
