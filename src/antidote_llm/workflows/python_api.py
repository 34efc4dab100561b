"""The Python functions: the same specs and the same workflows as the command line, with the same bytes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from antidote_llm.decision.compare import Comparison
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.io.processes import agreed
from antidote_llm.models.checkpoint_files import carry_over
from antidote_llm.workflows.compare import compare_evaluations
from antidote_llm.workflows.evaluate import EvaluateResult, run_evaluation
from antidote_llm.workflows.repair import RepairResult, run_repair
from antidote_llm.workflows.reporter import LogReporter, Reporter
from antidote_llm.workflows.spec import Spec, flat_fields, spec_from
from antidote_llm.workflows.specs import AlignSpec, EvaluateSpec, FinetuneSpec, RepairSpec
from antidote_llm.workflows.train import TrainResult, run_training

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    AnyModel: TypeAlias = str | Path | PreTrainedModel | PeftModel

ResultT = TypeVar("ResultT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _with_options_of(*specs: type[Spec]) -> Callable[[FunctionT], FunctionT]:
    """Let help(), notebooks and inspect show the fields of specs in the place of ``**options``."""

    def decorate(function: FunctionT) -> FunctionT:
        signature = inspect.signature(function)
        own = [found for found in signature.parameters.values() if found.kind is not found.VAR_KEYWORD]
        known = {found.name for found in own}
        fields = {name: found for spec in specs for name, found in flat_fields(spec).items() if name not in known}
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in fields.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return function

    return decorate


@_with_options_of(RepairSpec)
def repair(model: AnyModel, *, reporter: Reporter | None = None, **options: Any) -> RepairResult:
    """Repair a LoRA adapter or a full fine-tune; the same bytes as ``antidote repair``.

    Args:
        model: Folder or Hub id of a model or an adapter, or a loaded ``PeftModel`` or ``PreTrainedModel``; it is not
            changed. The base of a loaded adapter is read from the folder or Hub id that it came from.
        reporter: Hears messages and progress; by default the logger ``antidote_llm``.
        options: The fields of :class:`RepairSpec`, such as ``adapter``, ``harmful``, ``out`` and ``method``, and the
            method's own settings, such as ``alpha``.

    Returns:
        The result: ``verdict``, ``record``, ``evaluations``, ``model_dir`` and ``patch``.

    Raises:
        UserError: A setting or an input is wrong; nothing is left at ``out``.
    """
    reporter = reporter or LogReporter()
    with _random_state_kept(), _named(model, options, reporter) as named:
        return _of_the_first_process(run_repair(spec_from(RepairSpec, named), reporter))


@_with_options_of(EvaluateSpec)
def evaluate(model: AnyModel | None = None, *, reporter: Reporter | None = None, **options: Any) -> EvaluateResult:
    """Measure harm, refusal, over-refusal, coherence and tasks of a model, each with its 95 % interval.

    Args:
        model: Folder or Hub id, or a loaded model; None where ``endpoint`` names a model that is served.
        reporter: Hears messages and progress; by default the logger ``antidote_llm``.
        options: The fields of :class:`EvaluateSpec`, such as ``harmful``, ``harmless``, ``tasks``, ``judge`` and
            ``out``.

    Raises:
        UserError: A setting or an input is wrong, or there is nothing to ask.
    """
    reporter = reporter or LogReporter()
    with _random_state_kept(), _named(model, options, reporter) as named:
        return run_evaluation(spec_from(EvaluateSpec, named), reporter)


@_with_options_of(AlignSpec, FinetuneSpec)
def train(
    stage: Literal["align", "finetune"], model: AnyModel, *, reporter: Reporter | None = None, **options: Any
) -> TrainResult:
    """Train a model: align it (stage 1) or fine-tune it (stage 2), with or without a defense.

    Args:
        stage: Which stage.
        model: Folder or Hub id of a whole model, or a loaded one.
        reporter: Hears messages and progress; by default the logger ``antidote_llm``.
        options: The fields of :class:`AlignSpec` or :class:`FinetuneSpec`, such as ``data``, ``out`` and ``defense``,
            the settings of the training and of its adapter, and the defense's own.

    Raises:
        UserError: A setting or an input is wrong.
    """
    kinds: dict[str, type[AlignSpec] | type[FinetuneSpec]] = {"align": AlignSpec, "finetune": FinetuneSpec}
    if stage not in kinds:
        raise UserError(f"{setting('stage')} {stage}: no such stage: use align or finetune")
    reporter = reporter or LogReporter()
    with _random_state_kept(), _named(model, options, reporter) as named:
        spec = spec_from(kinds[stage], named)
        if not (isinstance(model, (str, Path)) or spec.merge or spec.training.lora is None):
            raise UserError(
                f"an adapter needs a base that stays: save the loaded model and name its folder, or pass "
                f"{setting('merge')}=True"
            )
        return _of_the_first_process(run_training(spec, reporter))


def compare(
    before: str | Path | Evaluation | EvaluateResult,
    after: str | Path | Evaluation | EvaluateResult,
    aligned: str | Path | Evaluation | EvaluateResult | None = None,
) -> Comparison:
    """Compare two evaluations prompt by prompt: the paired differences, the gain kept, and a verdict.

    Args:
        before: The attacked model's evaluation: its folder, or the evaluation itself.
        after: The repaired model's.
        aligned: The aligned model's; with it, the gain kept on each task is told.

    Raises:
        UserError: A folder holds no evaluation, or the evaluations differ in prompts, judge or settings.
    """
    kept = [found.evaluation if isinstance(found, EvaluateResult) else found for found in (before, after)]
    base = aligned.evaluation if isinstance(aligned, EvaluateResult) else aligned
    return compare_evaluations(kept[0], kept[1], base)


def _of_the_first_process(result: ResultT | None) -> ResultT:
    """Return what the first process of a distributed run found, in every process."""
    found = agreed(result)
    assert found is not None
    return found


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the caller's random numbers as they would be without this call."""
    import torch

    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def _named(model: AnyModel | None, options: dict[str, Any], reporter: Reporter) -> Iterator[dict[str, Any]]:
    """Name a model by its folder; one that is loaded is written to a folder of its own while the block runs.

    Raises:
        UserError: It is no model, or it is an adapter whose base cannot be named, or beside which another is named.
    """
    if model is None or isinstance(model, (str, Path)):
        yield {"model": model, **options}
        return
    if not hasattr(model, "save_pretrained"):
        raise UserError(
            f"{setting('model')} is a {type(model).__name__}: pass a folder, a Hub id, a PreTrainedModel or a PeftModel"
        )
    with TemporaryDirectory(prefix="antidote-loaded-") as folder:
        place = Path(folder) / "model"
        adapters = getattr(model, "peft_config", None)
        if adapters is None:
            _save(model, place, options)
            yield {"model": place, **options}
            return
        if not hasattr(model, "get_base_model"):
            raise UserError("the loaded model has an adapter and is no PeftModel: save both and name their folders")
        if len(adapters) != 1:
            raise UserError(f"the loaded model has {len(adapters)} adapters: save them and name their folders")
        if options.get("adapter") is not None:
            raise UserError(f"the loaded model has an adapter already: leave {setting('adapter')} out")
        base = model.get_base_model().name_or_path
        if not base:
            raise UserError("the base of the loaded adapter has no name: save both and name their folders")
        reporter.say(f"the base of the loaded adapter is read from {base}, as it is there")
        model.save_pretrained(place, save_embedding_layers=False)
        yield {**options, "model": base, "adapter": place}


def _save(model: PreTrainedModel, place: Path, options: dict[str, Any]) -> None:
    """Write a whole model, with the tokenizer of the folder or Hub id that it was loaded from."""
    model.save_pretrained(place)
    loaded_from = Path(model.name_or_path)
    if model.name_or_path and loaded_from.is_dir():
        # Files that ship with the model: a repaired model has them too.
        carry_over(loaded_from, place)
    elif options.get("tokenizer") is None and model.name_or_path:
        options["tokenizer"] = model.name_or_path
