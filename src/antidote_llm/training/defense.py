"""What a defense of stage 1 or 2 is: one typed function that turns a stage's data into a training job.

As for repair methods, the function's keyword parameters are its settings, and another package adds a defense through
the entry-point groups ``antidote_llm.alignment_defenses`` and ``antidote_llm.finetuning_defenses``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import BaseModel

from antidote_llm.choices import TrainingStage
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError, setting
from antidote_llm.plug_ins import PlugIn
from antidote_llm.registry import Method, MethodSettings, named, registered, settings_model
from antidote_llm.training.batches import Example, examples_of
from antidote_llm.training.objective import HOOKS, Objective
from antidote_llm.training.settings import TrainingSettings

if TYPE_CHECKING:
    from antidote_llm.data.rendering import Renderer, TokenizedRow
    from antidote_llm.training.objective import Trained
    from antidote_llm.training.trainer import RunOptions, TrainingResult

# What some defenses learn from besides the stage's own rows: harmful requests with harmful answers, or safe rows.
Auxiliary: TypeAlias = Literal["harmful", "safe"]

COMMANDS: Mapping[TrainingStage, str] = {"alignment": "align", "finetuning": "finetune"}
AUXILIARY_OF: Mapping[TrainingStage, Auxiliary] = {"alignment": "harmful", "finetuning": "safe"}


@dataclass(frozen=True)
class StageData:
    """What a stage learns from.

    Attributes:
        renderer: Turns records into tokens.
        rows: The alignment data (harmful requests refused, harmless ones answered), or the user's rows.
        auxiliary: In stage 1 harmful requests with harmful answers, in stage 2 safe rows; empty where none are given.
    """

    renderer: Renderer
    rows: Sequence[Record]
    auxiliary: Sequence[Record] = ()

    @cached_property
    def rendered(self) -> list[TokenizedRow]:
        """The stage's own rows as tokens."""
        return self.renderer.rows(self.rows)

    @cached_property
    def rendered_auxiliary(self) -> list[TokenizedRow]:
        """The auxiliary rows as tokens."""
        return self.renderer.rows(self.auxiliary)

    def examples(self, training: TrainingSettings) -> list[Example]:
        """Return the stage's own rows as examples.

        Raises:
            UserError: A row has nothing to learn from.
        """
        return examples_of(self.rendered, training, [record.origin for record in self.rows])

    def auxiliary_examples(self, training: TrainingSettings) -> list[Example]:
        """Return the auxiliary rows as examples.

        Raises:
            UserError: A row has nothing to learn from.
        """
        return examples_of(self.rendered_auxiliary, training, [record.origin for record in self.auxiliary])


@dataclass(frozen=True)
class TrainingJob:
    """What the trainer is given.

    Attributes:
        examples: The rows; each may carry auxiliary rows under names of their own.
        objective: What is minimised.
        training: How it is trained.
    """

    examples: Sequence[Example]
    objective: Objective
    training: TrainingSettings


@dataclass(frozen=True)
class Cost:
    """What a defense costs compared with plain fine-tuning; plans of a training use it.

    Attributes:
        passes: The work of a step, in steps of plain fine-tuning.
        graphs: Activations that are kept for the backward pass, in forward passes of plain fine-tuning.
        copies: Copies of the trained weights that are kept in memory.
    """

    passes: float = 1.0
    graphs: float = 1.0
    copies: float = 0.0


PLAIN = Cost()


@dataclass(frozen=True)
class Defense(Method):
    """A registered defense.

    Attributes:
        stage: The stage in which it works.
        needs_auxiliary: Whether it learns from auxiliary rows.
        cost: What it costs.
    """

    stage: TrainingStage
    needs_auxiliary: bool
    cost: Cost

    def require_fitting(self, auxiliary: Sequence[Record]) -> None:
        """Refuse auxiliary rows that are missing, or that this defense does not use.

        Raises:
            UserError: Names the setting.
        """
        option = setting(AUXILIARY_OF[self.stage])
        if self.needs_auxiliary and not auxiliary:
            raise UserError(f"{setting('defense')} {self.name} learns from further rows: pass {option} DATA")
        if auxiliary and not self.needs_auxiliary:
            raise UserError(f"{option} is not used by {setting('defense')} {self.name}: leave it out")

    def siblings(self) -> Iterable[Method]:
        """Return the defenses of the same stage."""
        return defenses(self.stage).values()

    def job(self, data: StageData, training: TrainingSettings, settings: BaseModel) -> TrainingJob:
        """Turn a stage's data into what the trainer is given.

        Raises:
            UserError: The data do not fit the defense, a row has nothing to learn from, or another package's defense
                failed.
        """
        self.require_fitting(data.auxiliary)
        job = self.run(settings, data, training)
        if self.plug_in is not None:
            with self.attributed_errors():
                _attribute_hooks(self.plug_in, job)
        made: TrainingJob = job
        return made


def _attribute_hooks(plug_in: PlugIn, job: TrainingJob) -> None:
    """Attribute errors in the hooks of another package's objective to that package."""
    if not isinstance(job, TrainingJob) or not isinstance(job.objective, Objective):
        raise TypeError("it must return a TrainingJob with an Objective")
    for name in HOOKS:
        setattr(job.objective, name, plug_in.running(label_user_errors=False)(getattr(job.objective, name)))


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
    needs_auxiliary: bool
    cost: Cost
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, function: Callable[..., TrainingJob]) -> Defense:
        settings = settings_model(function, MethodSettings)
        return Defense(
            function.__name__, function, settings, self.stage, self.needs_auxiliary, self.cost, presets=self.presets
        )


def alignment_defense(
    *,
    needs_harmful: bool = False,
    cost: Cost = PLAIN,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., TrainingJob]], Defense]:
    """Register a function of (data, training, *, settings) as a defense of stage 1.

    Args:
        needs_harmful: Whether it learns from harmful requests with harmful answers, as ``data.auxiliary``.
        cost: What it costs compared with plain fine-tuning.
        presets: Settings by name.

    Raises:
        UserError: A setting cannot become an option of the command line.
    """
    return _Registration("alignment", needs_harmful, cost, presets or {})


def finetuning_defense(
    *,
    needs_safe: bool = False,
    cost: Cost = PLAIN,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., TrainingJob]], Defense]:
    """Register a function of (data, training, *, settings) as a defense of stage 2.

    Args:
        needs_safe: Whether it learns from safe rows, as ``data.auxiliary``.
        cost: What it costs compared with plain fine-tuning.
        presets: Settings by name.

    Raises:
        UserError: A setting cannot become an option of the command line.
    """
    return _Registration("finetuning", needs_safe, cost, presets or {})


@cache
def defenses(stage: TrainingStage) -> Mapping[str, Defense]:
    """Return every installed defense of a stage by name."""
    return registered(f"antidote_llm.{stage}_defenses", Defense, f"{stage} defense")


def defense_named(stage: TrainingStage, name: str) -> Defense:
    """Return a defense.

    Raises:
        UserError: There is none of this name in the stage, or it cannot be used.
    """
    known, (other,) = defenses(stage), COMMANDS.keys() - {stage}
    if name not in known and name in defenses(other):
        raise UserError(
            f"{setting('defense')} {name} is one of antidote {COMMANDS[other]}: for antidote {COMMANDS[stage]} name "
            f"one of {', '.join(known)}"
        )
    return named(known, name, setting("defense"), f"{stage} defense")


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
    # Imported when a model is trained: the registry of defenses needs no torch.
    from antidote_llm.training.lora import attach_lora
    from antidote_llm.training.trainer import train

    job = defense.job(data, training, settings or defense.configure({}))
    trained = model if training.lora is None else attach_lora(model, training.lora, training.seed)
    trainable = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    result = train(trained, job.examples, job.training, job.objective, running)
    return StageResult(trained, result, trainable)
