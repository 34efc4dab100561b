"""Plans a repair: collects the statistics that its method needs, and finds what it does to every site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from antidote_llm.calibration.collect import Collection, Estimate, estimated
from antidote_llm.calibration.input_hooks import NonFiniteInputError
from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, check_lengths, check_token_ids
from antidote_llm.errors import UserError, setting
from antidote_llm.io.resources import Stopwatch
from antidote_llm.io.safetensors_files import FLOAT_BYTES
from antidote_llm.models.checkpoint import Checkpoint, same_tensors
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.memory_budget import MemoryBudget
from antidote_llm.models.sites import Site
from antidote_llm.models.target import Target, resolve_target
from antidote_llm.repairs.early_stopping import Agreement, collect_until_settled
from antidote_llm.repairs.edits import Plan, Problem, plan, request_of
from antidote_llm.repairs.method import RepairMethod, SelectionSettings, needs_harmful
from antidote_llm.repairs.record import CalibrationData, OutsideRecord
from antidote_llm.repairs.tally import outside_records


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
        lower_adapters: The frozen adapters that it was trained on.
        method: The method.
        settings: Its settings as given.
        solved: Its settings, solved-for values filled in.
        parts: What it does: one plan for all sites, or, for a model whose layers are on the disk, one plan a layer,
            made while the statistics are collected; these can be iterated over once.
        calibration: The harmful data.
        outside: The update outside the sites.
        restores_outside: Whether that goes back to the aligned model.
    """

    target: Target
    base: Checkpoint
    adapter: Checkpoint | None
    lower_adapters: tuple[Checkpoint, ...]
    method: RepairMethod
    settings: BaseModel
    solved: BaseModel
    parts: Iterable[Plan]
    calibration: CalibrationData | None
    outside: tuple[OutsideRecord, ...]
    restores_outside: bool


@dataclass(frozen=True)
class PlanOptions:
    """How the statistics of a repair are collected; the repair does not depend on it, except for ``until_settled``.

    Attributes:
        progress: Called with the number of rows of each finished micro-batch.
        cache: Whether statistics may come from the cache and are kept there.
        stopwatch: What the steps are timed with.
        work: A folder for the checkpoints that an interrupted run resumes from.
        budget: How much memory may be used; by default what is free.
        on_estimate: Called with what the statistics take, before they are collected.
        until_settled: Whether only as many rows are used, in random order, as the mask needs to settle.
    """

    progress: Callable[[int], None] | None = None
    cache: bool = True
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    work: Path | None = None
    budget: MemoryBudget | None = None
    on_estimate: Callable[[Estimate], None] | None = None
    until_settled: bool = False


def plan_repair(
    opened: LoadedModel,
    method: RepairMethod,
    settings: BaseModel,
    harmful: HarmfulData | None,
    calibration: CalibrationSettings | None = None,
    *,
    target: Target | None = None,
    restore_outside: bool = False,
    options: PlanOptions | None = None,
) -> PlannedRepair:
    """Collect statistics where the method needs them, and find what the repair does to every site.

    For a model whose layers are on the disk, statistics are collected and plans made layer by layer while the repair is
    written, except where all layers must be known first: a global scope, or a setting that is solved for.

    Args:
        opened: The model.
        method: The method.
        settings: Its settings.
        harmful: Harmful requests with answers, for methods that need them.
        calibration: How statistics are collected.
        target: What to edit; by default what :func:`antidote_llm.models.target.resolve_target` finds.
        restore_outside: Whether whatever else the fine-tune moved goes back to the aligned model.
        options: How the statistics are collected.

    Raises:
        UserError: There is nothing to repair, the method needs harmful data and there is none, it cannot tell when its
            mask has settled, or the memory does not suffice.
    """
    options = options or PlanOptions()
    target = target or resolve_target(opened)
    _require_update(opened, target, restore_outside)
    if options.until_settled:
        _require_column_score(method, settings)
    plans, described = _Plans(target, method, settings, options), None
    if needs_harmful(method, settings):
        if harmful is None:
            raise UserError(
                f"{setting('method')} {method.name} needs harmful requests with answers: pass {setting('harmful')} DATA"
            )
        collection = _collection(opened, target, harmful, calibration)
        estimate = estimated(collection, options.budget)
        if options.on_estimate is not None:
            options.on_estimate(estimate)
        agreement = None
        if options.until_settled:
            with options.stopwatch.step("calibrate"):
                moments, agreement, collection = plans.settled(collection, estimate.sweeps)
            arriving = iter([(target.sites, moments)])
        else:
            collected = collection.by_part(
                progress=options.progress, cache=options.cache, work=options.work, sweeps=estimate.sweeps
            )
            arriving = _timed(options.stopwatch, opened, collected)
        described = _described(opened, collection, harmful, agreement)
        if opened.stream is not None and _by_layer(method, settings):
            parts: Iterable[Plan] = (plans.of(sites, moments) for sites, moments in arriving)
            solved = settings
        else:
            whole = plans.of(*_all_sites(collection, arriving))
            parts, solved = (whole,), whole.settings
    else:
        whole = plans.of(target.sites, None)
        parts, solved = (whole,), whole.settings
    with options.stopwatch.step("plan"):
        outside = outside_records(target.outside, restored=restore_outside)
    return PlannedRepair(
        target=target,
        base=opened.base,
        adapter=opened.adapter,
        lower_adapters=opened.lower_adapters,
        method=method,
        settings=settings,
        solved=solved,
        parts=parts,
        calibration=described,
        outside=outside,
        restores_outside=restore_outside,
    )


def collected(
    opened: LoadedModel,
    target: Target,
    harmful: HarmfulData,
    settings: CalibrationSettings,
    progress: Callable[[int], None] | None = None,
    *,
    cache: bool = True,
) -> tuple[Moments, CalibrationData]:
    """Collect the statistics of all sites, and describe what they were collected on.

    Raises:
        UserError: A row does not fit the model, or a site did not see every token.
    """
    collection = _collection(opened, target, harmful, settings)
    arriving = _timed(Stopwatch(), opened, collection.by_part(progress=progress, cache=cache))
    _, moments = _all_sites(collection, arriving)
    return moments, _described(opened, collection, harmful)


def _require_update(opened: LoadedModel, target: Target, restore_outside: bool) -> None:
    if target.name == "delta" and target.aligned is not None and same_tensors(target.checkpoint, target.aligned):
        raise UserError(
            f"{opened.base.reference} has the weights of {target.aligned.reference}: there is no update: name the "
            "model that the fine-tune started from"
        )
    if restore_outside and target.aligned is None:
        raise UserError(
            f"{setting('restore_outside')} needs the model that the fine-tune started from: pass "
            f"{setting('aligned')} REF"
        )


def _collection(
    opened: LoadedModel, target: Target, harmful: HarmfulData, settings: CalibrationSettings | None
) -> Collection:
    rows = harmful.renderer.rows(harmful.records)
    check_token_ids(harmful.records, rows, opened.vocabulary_size)
    check_lengths(harmful.records, rows, opened.positions)
    return Collection.of(opened, rows, settings, target.sites)


def _require_column_score(method: RepairMethod, settings: BaseModel) -> None:
    auto = f"{setting('calibration')} auto"
    if not needs_harmful(method, settings):
        raise UserError(f"{auto}: {setting('method')} {method.name} uses no statistics as it is set: leave it out")
    if method.column_score is None:
        raise UserError(
            f"{auto} asks when a mask of |update| * norm has settled, and {setting('method')} {method.name} makes "
            "none: use all"
        )


@dataclass(frozen=True)
class _Plans:
    """Makes the plans of a repair."""

    target: Target
    method: RepairMethod
    settings: BaseModel
    options: PlanOptions

    def of(self, sites: tuple[Site, ...], moments: Moments | None) -> Plan:
        """Return what the repair does to some sites."""
        with self.options.stopwatch.step("plan"):
            return plan(Problem(replace(self.target, sites=sites), moments), self.method, self.settings)

    def settled(self, collection: Collection, sweeps: int) -> tuple[Moments, Agreement, Collection]:
        """Collect statistics until the method's own mask has settled."""
        assert self.method.column_score is not None
        score, bare = self.method.column_score(self.settings), Problem(self.target, None)

        def update(site: Site) -> Tensor:
            return bare.inputs(site, self.target.weight(site), self.target.reference(site)).update_OI

        request = request_of(self.settings)
        return collect_until_settled(collection, request, score, update, progress=self.options.progress, sweeps=sweeps)


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
    """Yield statistics, and time how long each part takes."""
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


def _by_layer(method: RepairMethod, settings: BaseModel) -> bool:
    """Whether a layer can be planned without the others."""
    solves = method.matched is not None and method.matched.wanted(settings)
    return not solves and not (isinstance(settings, SelectionSettings) and settings.scope == "global")


def _all_sites(
    collection: Collection, arriving: Iterator[tuple[tuple[Site, ...], Moments]]
) -> tuple[tuple[Site, ...], Moments]:
    sites = {name: found for _, part in arriving for name, found in part.sites.items()}
    return collection.sites, Moments(sites, len(collection.rows), collection.tokens, collection.sha256)


def _require_finite(opened: LoadedModel) -> None:
    """Name the adapter's tensor that broke the computation, if one did: the base was checked when it was opened."""
    for checkpoint in opened.checkpoints[1:]:
        for file in checkpoint.weights.values():
            for key, entry in file.entries.items():
                if entry.dtype in FLOAT_BYTES:
                    file.read(key)
