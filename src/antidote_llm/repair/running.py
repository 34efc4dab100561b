"""Runs a repair: statistics, plan, and the repaired checkpoint with its patch and record."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import BaseModel

from antidote_llm.artifacts.files import copy_file
from antidote_llm.artifacts.measuring import Stopwatch, peak_rss_bytes
from antidote_llm.calibration import CalibrationSettings, Moments, collect
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, check_lengths, check_token_ids
from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.opening import OpenModel
from antidote_llm.patching import copy_checkpoint, predicted_bytes, read_patch, transform, write_patched
from antidote_llm.patching.patch import Patch
from antidote_llm.repair.method import RepairMethod
from antidote_llm.repair.planning import Plan, Problem, needs_harmful, plan
from antidote_llm.repair.record import (
    CalibrationData,
    Origin,
    PatchSummary,
    RepairRecord,
    SiteRecord,
    Totals,
    UpdateRecord,
)
from antidote_llm.repair.update_norm import total_norm, update_norms

TARGET = "adapter"
_LIBRARIES = ("antidote-llm", "torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True)
class HarmfulData:
    """Harmful requests with answers, and how they become tokens."""

    reference: str
    records: Sequence[Record]
    renderer: Renderer


@dataclass(frozen=True)
class PlannedRepair:
    """A repair that has been computed and not yet written."""

    adapter: Checkpoint
    base: Checkpoint
    method: RepairMethod
    settings: BaseModel
    problem: Problem
    plan: Plan
    calibration: CalibrationData | None


def plan_repair(
    opened: OpenModel,
    method: RepairMethod,
    settings: BaseModel,
    harmful: HarmfulData | None,
    calibration: CalibrationSettings | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    cache: bool = True,
    stopwatch: Stopwatch | None = None,
) -> PlannedRepair:
    """Collect statistics where the method needs them, and compute the new values of every site.

    Raises:
        UserError: There is no adapter to repair, or the method needs harmful data and there is none.
    """
    stopwatch = stopwatch or Stopwatch()
    calibration = calibration or CalibrationSettings()
    if opened.adapter is None:
        raise UserError(f"{opened.base.reference}: no adapter to repair: pass --adapter, or name the adapter's folder")
    file = opened.adapter.weights["adapter_model.safetensors"]
    weights = {site.name: file.read(site.key) for site in opened.sites}
    moments, described = None, None
    if needs_harmful(method, settings):
        if harmful is None:
            raise UserError(f"--method {method.name} needs harmful requests with answers: pass --harmful DATA")
        with stopwatch.step("calibrate"):
            moments, described = _calibrate(opened, harmful, calibration, progress, cache)
    problem = Problem(opened.sites, weights, moments)
    with stopwatch.step("plan"), torch.no_grad():
        planned = plan(problem, method, settings)
    return PlannedRepair(opened.adapter, opened.base, method, settings, problem, planned, described)


def _calibrate(
    opened: OpenModel,
    harmful: HarmfulData,
    settings: CalibrationSettings,
    progress: Callable[[int], None] | None,
    cache: bool,
) -> tuple[Moments, CalibrationData]:
    rows = harmful.renderer.rows(harmful.records)
    check_token_ids(harmful.records, rows, opened.vocabulary_size)
    check_lengths(harmful.records, rows, opened.positions)
    moments = collect(opened, rows, settings, progress=progress, cache=cache)
    described = CalibrationData(
        reference=harmful.reference,
        rows=moments.rows,
        tokens=moments.tokens,
        policy=settings.tokens,
        template=harmful.renderer.template,
        dtype=str(opened.dtype).removeprefix("torch."),
        moments_sha256=moments.sha256,
    )
    return moments, described


def predicted_patch_bytes(repair: PlannedRepair) -> int:
    """Return the size of the patch's data before it is written: exact for removed entries, else an upper bound."""
    total = 0
    for site in repair.problem.sites:
        old, new = repair.problem.weights[site.name], repair.plan.edited[site.name]
        changed = _changed(repair, site.name)
        if changed:
            # Minus zero has a bit that plus zero has not: such an edit is kept as a dense one.
            differs = _bits(old) != _bits(new)
            zeroed = not bool(_bits(new)[differs].any())
            total += predicted_bytes(old.numel(), changed, old.element_size(), zeroed=zeroed)
    return total


def write_repair(repair: PlannedRepair, folder: Path, command: str, stopwatch: Stopwatch) -> RepairRecord:
    """Write ``model/`` and ``record/patch.safetensors`` below a folder, and return the record of it.

    The patch is read back and taken off a copy of what was written.

    Raises:
        DefectError: The bytes that came of it are not those that went in.
    """
    with stopwatch.step("write"):
        model = folder / "model"
        model.mkdir()
        copy_checkpoint(repair.adapter.folder, model, leave_out=frozenset(repair.adapter.weights))
        (file_name,) = repair.adapter.weights
        edited = {(file_name, site.key): repair.plan.edited[site.name] for site in repair.problem.sites}
        recipe: dict[str, object] = {
            "method": repair.method.name,
            "target": TARGET,
            "settings": repair.plan.settings.model_dump(),
        }
        patch = write_patched(repair.adapter.weights, edited, recipe, model)
        patch_path = folder / "record" / "patch.safetensors"
        patch.write(patch_path)
    with stopwatch.step("verify"):
        summary = PatchSummary(
            size_bytes=patch_path.stat().st_size,
            sha256_before={file.path: file.sha256_before for file in patch.description.files},
            sha256_after={file.path: file.sha256_after for file in patch.description.files},
        )
        _require_reverts(read_patch(patch_path), model)
    return record(repair, command, stopwatch, summary)


def _require_reverts(patch: Patch, model: Path) -> None:
    with TemporaryDirectory(dir=model.parent) as scratch:
        for file in patch.description.files:
            copy_file(model / file.path, Path(scratch) / file.path)
        transform(patch, Path(scratch), "revert")


def record(repair: PlannedRepair, command: str, stopwatch: Stopwatch, patch: PatchSummary | None) -> RepairRecord:
    """Describe a repair."""
    given, solved = repair.settings.model_dump(), repair.plan.settings.model_dump()
    sites, updates, totals = _counts(repair)
    return RepairRecord(
        format=1,
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        command=command,
        base=Origin(reference=repair.base.reference, sha256=repair.base.sha256),
        adapter=Origin(reference=repair.adapter.reference, sha256=repair.adapter.sha256),
        calibration=repair.calibration,
        method=repair.method.name,
        target=TARGET,
        settings=given,
        solved={name: value for name, value in solved.items() if value != given[name]},
        sites=sites,
        updates=updates,
        totals=totals,
        patch=patch,
        wall_seconds=dict(stopwatch.seconds),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _counts(repair: PlannedRepair) -> tuple[tuple[SiteRecord, ...], tuple[UpdateRecord, ...], Totals]:
    chosen: Mapping[str, torch.Tensor] | None = repair.plan.chosen
    sites = tuple(
        SiteRecord(
            name=site.name,
            module=site.module,
            role=site.role,
            layer=site.layer,
            rows=site.shape[0],
            columns=site.shape[1],
            chosen=None if chosen is None else int(chosen[site.name].sum()),
            changed=_changed(repair, site.name),
        )
        for site in repair.problem.sites
    )
    before = update_norms(repair.problem.sites, repair.problem.weights)
    after = update_norms(repair.problem.sites, repair.plan.edited)
    modules = {site.module: site for site in repair.problem.sites}
    updates = tuple(
        UpdateRecord(module=name, layer=site.layer, kind=site.kind, norm_before=before[name], norm_after=after[name])
        for name, site in modules.items()
    )
    totals = Totals(
        entries=sum(site.rows * site.columns for site in sites),
        chosen=None if chosen is None else sum(site.chosen or 0 for site in sites),
        changed=sum(site.changed for site in sites),
        update_norm_before=total_norm(before),
        update_norm_after=total_norm(after),
    )
    return sites, updates, totals


def _changed(repair: PlannedRepair, name: str) -> int:
    return int((_bits(repair.problem.weights[name]) != _bits(repair.plan.edited[name])).sum())


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
