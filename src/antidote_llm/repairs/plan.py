"""Plans a repair: what it edits, from which statistics, and what becomes of every site once these are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from antidote_llm.calibration.collect import Collection, Estimate, estimated
from antidote_llm.calibration.input_hooks import NonFiniteInputError
from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, check_lengths, check_token_ids
from antidote_llm.errors import DefectError, UserError
from antidote_llm.io.resources import Stopwatch
from antidote_llm.io.safetensors_files import DTYPES
from antidote_llm.models.checkpoint import Checkpoint, same_tensors
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.memory_budget import MemoryBudget
from antidote_llm.models.sites import Site
from antidote_llm.models.target import Target, resolve_target
from antidote_llm.repairs.early_stopping import Agreement, Ranking, collect_until_settled
from antidote_llm.repairs.edits import Plan, Problem, needs_harmful, plan, request_of
from antidote_llm.repairs.method import RepairMethod
from antidote_llm.repairs.methods.antidote import antidote
from antidote_llm.repairs.record import CalibrationData, OutsideRecord, outside_records


@dataclass(frozen=True)
class HarmfulData:
    """Harmful requests with answers, and how they become tokens."""

    references: tuple[str, ...]
    records: Sequence[Record]
    renderer: Renderer


@dataclass(frozen=True)
class PlannedRepair:
    """A repair that has been planned and not yet written.

    Attributes:
        target: What it edits.
        base: The whole model.
        adapter: The adapter that is repaired, if any.
        beneath: The adapters under it.
        method: The method.
        settings: Its settings as given.
        parts: The plan of all sites; or of one layer after the other, which can be gone through once, each as soon as
            its statistics are complete.
        calibration: The harmful data.
        outside: The update outside the sites.
        restores_outside: Whether that goes back to the aligned model.
    """

    target: Target
    base: Checkpoint
    adapter: Checkpoint | None
    beneath: tuple[Checkpoint, ...]
    method: RepairMethod
    settings: BaseModel
    parts: Iterable[Plan]
    calibration: CalibrationData | None
    outside: tuple[OutsideRecord, ...]
    restores_outside: bool

    @property
    def plan(self) -> Plan:
        """What becomes of every site.

        Raises:
            DefectError: The plan comes layer by layer.
        """
        if not isinstance(self.parts, tuple):
            raise DefectError("the plan of this repair comes layer by layer, as its statistics do")
        found: Plan = self.parts[0]
        return found

    @property
    def solved(self) -> BaseModel:
        """The settings, solved-for values filled in."""
        return self.plan.settings if isinstance(self.parts, tuple) else self.settings

    @property
    def problem(self) -> Problem:
        """What it starts from."""
        return self.plan.problem


def plan_repair(
    opened: LoadedModel,
    method: RepairMethod,
    settings: BaseModel,
    harmful: HarmfulData | None,
    calibration: CalibrationSettings | None = None,
    *,
    target: Target | None = None,
    restore_outside: bool = False,
    progress: Callable[[int], None] | None = None,
    cache: bool = True,
    stopwatch: Stopwatch | None = None,
    work: Path | None = None,
    room: MemoryBudget | None = None,
    told: Callable[[Estimate], None] | None = None,
    until_settled: bool = False,
) -> PlannedRepair:
    """Collect statistics where the method needs them, and find what becomes of every site.

    Of a model whose layers are on the disk, statistics are collected and plans made while the repair is written, layer
    by layer, but for what has to know all layers first: a global scope, or a setting that is solved for.

    Args:
        opened: The model as it is.
        method: The method.
        settings: Its settings.
        harmful: Harmful requests with answers, for methods that need them.
        calibration: How statistics are collected.
        target: What to edit; by default what :func:`antidote_llm.models.resolve_target` finds.
        restore_outside: Whether whatever else the fine-tune moved goes back to the aligned model.
        progress: Called with the number of rows of each finished micro-batch.
        cache: Whether statistics may come from the cache and are kept there.
        stopwatch: What the steps are timed with.
        work: A folder where a run that is cut off leaves what the next one goes on from.
        room: How much memory may be used; by default what is free.
        told: Called with what the statistics take, before they are collected.
        until_settled: Whether only as many rows are used, drawn by lot, as the masks need to settle.

    Raises:
        UserError: There is nothing to repair, the method needs harmful data and there is none, or the memory does not
            suffice.
    """
    stopwatch = stopwatch or Stopwatch()
    target = target or resolve_target(opened)
    _require_update(opened, target, restore_outside)
    parts: Iterable[Plan]
    described = None
    if needs_harmful(method, settings):
        if harmful is None:
            raise UserError(f"--method {method.name} needs harmful requests with answers: pass --harmful DATA")
        collection = _collection(opened, target, harmful, calibration)
        estimate = estimated(collection, room)
        if told is not None:
            told(estimate)
        agreement = None
        if until_settled:
            with stopwatch.step("calibrate"):
                moments, agreement, collection = _settled(target, collection, settings, progress, estimate.sweeps)
            arriving = iter([(target.sites, moments)])
        else:
            collected = collection.by_part(progress=progress, cache=cache, work=work, sweeps=estimate.sweeps)
            arriving = _timed(stopwatch, opened, collected)
        described = _described(opened, collection, harmful, agreement)
        parts = _planned(stopwatch, target, arriving, method, settings)
        if opened.stream is None or not _separable(method, settings):
            parts = tuple(_planned(stopwatch, target, iter([_together(collection, arriving)]), method, settings))
    else:
        if until_settled:
            raise UserError(f"--calibration auto: --method {method.name} uses no statistics as it is set: leave it out")
        with stopwatch.step("plan"):
            parts = (plan(Problem(target, None), method, settings),)
    with stopwatch.step("plan"):
        outside = outside_records(target.outside, restored=restore_outside)
    return PlannedRepair(
        target=target,
        base=opened.base,
        adapter=opened.adapter,
        beneath=opened.beneath,
        method=method,
        settings=settings,
        parts=parts,
        calibration=described,
        outside=outside,
        restores_outside=restore_outside,
    )


def _require_update(opened: LoadedModel, target: Target, restore_outside: bool) -> None:
    if target.name == "delta" and target.aligned is not None and same_tensors(target.checkpoint, target.aligned):
        raise UserError(
            f"{opened.base.reference} has the weights of {target.aligned.reference}: there is no update: name the "
            "model that the fine-tune started from"
        )
    if restore_outside and target.aligned is None:
        raise UserError("--restore-outside needs the model that the fine-tune started from: pass --aligned REF")


def _collection(
    opened: LoadedModel, target: Target, harmful: HarmfulData, settings: CalibrationSettings | None
) -> Collection:
    rows = harmful.renderer.rows(harmful.records)
    check_token_ids(harmful.records, rows, opened.vocabulary_size)
    check_lengths(harmful.records, rows, opened.positions)
    return Collection.of(opened, rows, settings, target.sites)


def _settled(
    target: Target,
    collection: Collection,
    settings: BaseModel,
    progress: Callable[[int], None] | None,
    sweeps: int,
) -> tuple[Moments, Agreement, Collection]:
    given = settings.model_dump()
    if "alpha" not in given:
        raise UserError("--calibration auto asks when a mask has settled, and this method makes none: use all")
    request = request_of(antidote.configure({name: given[name] for name in ("alpha", "scope", "rounding")}))
    ranking = Ranking(request.scope, request.count, given.get("statistic", "rms"), given.get("norm_power", 1))

    def update(site: Site) -> Tensor:
        return Problem(target, None).inputs(site, target.weight(site), target.reference(site)).update_OI

    return collect_until_settled(collection, ranking, update, progress=progress, sweeps=sweeps)


def _described(
    opened: LoadedModel, collection: Collection, harmful: HarmfulData, agreement: Agreement | None = None
) -> CalibrationData:
    return CalibrationData(
        references=harmful.references,
        rows=len(collection.rows),
        of_rows=agreement and agreement.of_rows,
        agreement_bound=agreement and agreement.bound,
        tokens=collection.tokens,
        policy=collection.settings.tokens,
        template=harmful.renderer.template,
        dtype=str(opened.dtype).removeprefix("torch."),
        moments_sha256=collection.sha256,
    )


def _timed(
    stopwatch: Stopwatch, opened: LoadedModel, parts: Iterator[tuple[tuple[Site, ...], Moments]]
) -> Iterator[tuple[tuple[Site, ...], Moments]]:
    """Go through statistics as they come in, and time the waiting."""
    while True:
        try:
            with stopwatch.step("calibrate"):
                found = next(parts, None)
        except NonFiniteInputError:
            _require_finite(opened)
            raise
        if found is None:
            return
        yield found


def _separable(method: RepairMethod, settings: BaseModel) -> bool:
    """Whether a layer can be planned without knowing the others."""
    solves = method.matched is not None and method.matched.wanted(settings)
    return not solves and settings.model_dump().get("scope") != "global"


def _planned(
    stopwatch: Stopwatch,
    target: Target,
    arriving: Iterator[tuple[tuple[Site, ...], Moments]],
    method: RepairMethod,
    settings: BaseModel,
) -> Iterator[Plan]:
    for sites, moments in arriving:
        with stopwatch.step("plan"):
            found = plan(Problem(replace(target, sites=sites), moments), method, settings)
        yield found


def _together(
    collection: Collection, arriving: Iterator[tuple[tuple[Site, ...], Moments]]
) -> tuple[tuple[Site, ...], Moments]:
    sites = {name: found for _, part in arriving for name, found in part.sites.items()}
    return collection.sites, Moments(sites, len(collection.rows), collection.tokens, collection.sha256)


def _require_finite(opened: LoadedModel) -> None:
    """Name the adapter's tensor that broke the computation, if one did: the base was looked at when it was opened."""
    for checkpoint in opened.checkpoints[1:]:
        for file in checkpoint.weights.values():
            for key, entry in file.entries.items():
                if entry.dtype in DTYPES:
                    file.read(key)
