"""Writes a repair: the repaired checkpoint, the patch that undoes it, and the record of both."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.filesize import decimal
from torch import Tensor

from antidote_llm.errors import DefectError, UserError, changed_meanwhile, setting
from antidote_llm.io.files import sha256_file
from antidote_llm.io.resources import Stopwatch, peak_rss_bytes
from antidote_llm.io.safetensors_files import FLOAT_BYTES, TensorFile
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.sites import Site
from antidote_llm.models.target import OutsideTensor
from antidote_llm.patching.apply import require_reverts
from antidote_llm.patching.description import UnchangedFile
from antidote_llm.patching.encodings import entries_bytes
from antidote_llm.patching.patch import PATCH_FILE, Patch
from antidote_llm.patching.patched_copies import PatchedCopies, predicted_header_bytes
from antidote_llm.patching.shipping import copy_checkpoint, shipped_files, shipped_sha256, shipping
from antidote_llm.repairs.edits import Plan, request_of
from antidote_llm.repairs.plan import PlannedRepair
from antidote_llm.repairs.record import Origin, PatchSummary, RepairRecord
from antidote_llm.repairs.selection import Selection
from antidote_llm.repairs.tally import Tally

_LIBRARIES = ("antidote-llm", "torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")


def predicted_patch_bytes(repair: PlannedRepair) -> int:
    """Return the size of the patch before it is made: its size if every chosen entry changes."""
    sites, files = repair.target.sites, repair.target.checkpoint.weights
    item_bytes = {site.name: FLOAT_BYTES[files[site.file].entries[site.key].dtype] for site in sites}
    bitmaps = sum(entries_bytes(site.shape[0] * site.shape[1], 0, 0) for site in sites)
    outside = 0
    if repair.restores_outside:
        outside = sum(entries_bytes(t.entries, t.entries, t.item_bytes) for t in repair.target.outside)
    if repair.method.kind == "solve":
        chosen = sum(site.shape[0] * site.shape[1] * item_bytes[site.name] for site in sites)
    else:
        chosen = Selection(request_of(repair.solved), {}).most_bytes(sites, item_bytes)
    unknown = _unchanged(repair.target.checkpoint, dict.fromkeys(_unchanged_names(repair), "0" * 64))
    header = predicted_header_bytes(_changing(repair), _edited(repair), _recipe(repair), unknown)
    return bitmaps + chosen + outside + header


def _changing(repair: PlannedRepair) -> dict[str, TensorFile]:
    """Return the weight files that hold anything to edit, by name."""
    return {name: repair.target.checkpoint.weights[name] for name in sorted({file for file, _ in _edited(repair)})}


def _unchanged_names(repair: PlannedRepair) -> list[str]:
    """Return the files that ship and hold nothing to edit, by name."""
    checkpoint, changing = repair.target.checkpoint, _changing(repair)
    return [name for name in shipping(checkpoint.folder, checkpoint.weights).files if name not in changing]


def _unchanged(checkpoint: Checkpoint, sha256: Mapping[str, str]) -> list[UnchangedFile]:
    found = []
    for name in sorted(sha256):
        path = checkpoint.folder / name
        try:
            found.append(UnchangedFile(path=name, size_bytes=path.stat().st_size, sha256=sha256[name]))
        except FileNotFoundError as error:
            raise changed_meanwhile(path) from error
    return found


def rehearse_repair(repair: PlannedRepair, command: str, stopwatch: Stopwatch) -> RepairRecord:
    """Return the record of a repair without writing anything."""
    tally = Tally(repair.target.sites)
    for part in repair.parts:
        with stopwatch.step("rehearse"):
            for site in part.problem.target.sites:
                for edit in part.edits(site):
                    tally.add(site, edit)
    return _record(repair, tally, command, stopwatch, None)


def write_repair(
    repair: PlannedRepair,
    folder: Path,
    command: str,
    stopwatch: Stopwatch,
    *,
    hard_links: bool = False,
    patch_only: bool = False,
    max_disk_bytes: int | None = None,
) -> RepairRecord:
    """Write ``model/`` and ``record/patch.safetensors`` in a folder, and return the record.

    The patch is then reverted on what was written, and the hashes are compared.

    Args:
        repair: The repair; one that is planned layer by layer can be written once.
        folder: Where to write.
        command: What repeats it.
        stopwatch: What the steps are timed with.
        hard_links: Whether weight files that do not change are linked instead of copied.
        patch_only: Whether no model is written: applying the patch makes it.
        max_disk_bytes: What the result may take on the disk.

    Raises:
        UserError: An input changed meanwhile, or the disk is too small.
        DefectError: Reverting the patch does not give the input's bytes.
    """
    checkpoint, tally = repair.target.checkpoint, Tally(repair.target.sites)
    changing = _changing(repair)
    predicted = predicted_patch_bytes(repair)
    # Until the patch is written, there is also a scratch file of its size.
    needed = 2 * predicted + (0 if patch_only else _model_bytes(checkpoint, changing, hard_links=hard_links))
    _require_room(folder, needed, max_disk_bytes, patch_only=patch_only)
    model, patch_path = None if patch_only else folder / "model", folder / "record" / PATCH_FILE
    patch_path.parent.mkdir(parents=True, exist_ok=True)
    with stopwatch.step("write"):
        kept = shipped_sha256(checkpoint.folder, _unchanged_names(repair), checkpoint.sha256)
        if model is not None:
            copy_checkpoint(
                checkpoint.folder, model, checkpoint.weights, leave_out=frozenset(changing), hard_links=hard_links
            )
            _require_copied(model, kept, checkpoint)
    known = {name: checkpoint.sha256[name] for name in changing}
    with PatchedCopies(
        changing,
        _edited(repair),
        _recipe(repair),
        model,
        patch_path,
        known_sha256=known,
        unchanged=_unchanged(checkpoint, kept),
    ) as copies:
        for part in repair.parts:
            with stopwatch.step("write"):
                for (file, key), sites in _by_tensor(part.problem.target.sites).items():
                    copies.edit(file, key, _new_values(repair, part, tally, sites))
        with stopwatch.step("write"):
            for (file, key), tensor in _restored(repair).items():
                copies.edit(file, key, [tensor.aligned_values()])
            patch = copies.finish()
    with stopwatch.step("verify"):
        for each in (checkpoint, repair.base, *([repair.target.aligned] if repair.target.aligned else [])):
            each.require_unchanged()
        summary = PatchSummary(
            size_bytes=patch_path.stat().st_size,
            predicted_bytes=predicted,
            sha256_before={file.path: file.sha256_before for file in patch.description.files},
            sha256_after={file.path: file.sha256_after for file in patch.description.files},
            sha256_unchanged={file.path: file.sha256 for file in patch.description.unchanged},
            sha256=patch.sha256,
        )
        for name, sha256 in summary.sha256_before.items():
            if sha256 != checkpoint.sha256[name]:
                raise changed_meanwhile(checkpoint.folder / name)
        if model is not None:
            _require_reverts(patch, model, changing, checkpoint)
    return _record(repair, tally, command, stopwatch, summary)


def _require_copied(model: Path, kept: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Compare the copies of all files but weights, which are small, with the hashes in the patch."""
    for name, sha256 in kept.items():
        if name not in checkpoint.weights and (not (model / name).is_file() or sha256_file(model / name) != sha256):
            raise changed_meanwhile(checkpoint.folder / name)


def _require_reverts(patch: Patch, model: Path, changing: Mapping[str, TensorFile], checkpoint: Checkpoint) -> None:
    """Revert the patch on what was written; if that fails, name an input file that has changed since it was hashed."""
    try:
        require_reverts(patch, model)
    except DefectError:
        for name, file in changing.items():
            if sha256_file(file.path) != checkpoint.sha256[name]:
                raise changed_meanwhile(file.path) from None
        raise


def _model_bytes(checkpoint: Checkpoint, changing: Mapping[str, TensorFile], *, hard_links: bool) -> int:
    """Return what the repaired model takes on the disk if no copy shares blocks with its original."""
    return sum(
        path.stat().st_size
        for path in shipped_files(checkpoint.folder, checkpoint.weights)
        if path.name in changing or not (hard_links and path.suffix.lower() == ".safetensors")
    )


def _require_room(folder: Path, needed_bytes: int, max_disk_bytes: int | None, *, patch_only: bool) -> None:
    if max_disk_bytes is not None and needed_bytes > max_disk_bytes:
        fix = "raise it" if patch_only else f"raise it, or pass {setting('patch_only')}"
        raise UserError(
            f"{setting('max_disk')} {decimal(max_disk_bytes)}: the result takes {decimal(needed_bytes)} at most while "
            f"it is written: {fix}"
        )
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"{folder.parent}: no space: the result takes {needed_bytes / 1e6:,.3f} MB and {free_bytes / 1e6:,.3f} MB "
            f"are free: make room, or choose another {setting('out')}"
        )


def _edited(repair: PlannedRepair) -> list[tuple[str, str]]:
    """Return all tensors that are edited, by file and key."""
    return [*_by_tensor(repair.target.sites), *_restored(repair)]


def _by_tensor(sites: Sequence[Site]) -> dict[tuple[str, str], list[Site]]:
    """Return the sites of each stored tensor: one, or several that are stacked in it."""
    found: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        found.setdefault((site.file, site.key), []).append(site)
    return found


def _restored(repair: PlannedRepair) -> dict[tuple[str, str], OutsideTensor]:
    if not repair.restores_outside:
        return {}
    return {(tensor.stored.file_name, tensor.key): tensor for tensor in repair.target.outside if tensor.entries}


def _new_values(repair: PlannedRepair, part: Plan, tally: Tally, sites: Sequence[Site]) -> Iterator[Tensor]:
    """Yield the new values of a stored tensor in the order of its entries."""
    by_slice = {site.part: site for site in sites}
    file = repair.target.checkpoint.weights[sites[0].file]
    entry = file.entries[sites[0].key]
    for place in range(entry.shape[0]) if None not in by_slice else [None]:
        if place not in by_slice:
            # A matrix of the stack that is not a site does not change.
            yield file.read_rows(entry.key, 0, entry.shape[1], place)
            continue
        for edit in part.edits(by_slice[place]):
            tally.add(by_slice[place], edit)
            yield by_slice[place].turned(edit.after_OI)


def _recipe(repair: PlannedRepair) -> dict[str, object]:
    return {
        "method": repair.method.name,
        "target": repair.target.name,
        "settings": repair.solved.model_dump(),
        "outside": "restored" if repair.restores_outside else "kept",
    }


def _record(
    repair: PlannedRepair, tally: Tally, command: str, stopwatch: Stopwatch, patch: PatchSummary | None
) -> RepairRecord:
    goes_back = repair.restores_outside and any(tensors.norm_before for tensors in repair.outside)
    if repair.target.name != "weight" and tally.totals.update_norm_before == 0 and not goes_back:
        found = f"{repair.base.reference} does not differ from {setting('aligned')}"
        if repair.adapter is not None:
            found = f"{repair.adapter.reference} changes nothing"
        raise UserError(
            f"{found} in any edited matrix: there is nothing to repair: name other {setting('sites')}, or pass "
            f"{setting('restore_outside')} where the rest moved"
        )
    given, solved = repair.settings.model_dump(), repair.solved.model_dump()
    aligned = repair.target.aligned if repair.adapter is None else None
    return RepairRecord(
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        command=command,
        base=_origin(repair.base),
        adapter=None if repair.adapter is None else _origin(repair.adapter),
        aligned=None if aligned is None else _origin(aligned),
        beneath=tuple(_origin(adapter) for adapter in repair.lower_adapters),
        calibration=repair.calibration,
        method=repair.method.name,
        target=repair.target.name,
        settings=given,
        solved={name: value for name, value in solved.items() if value != given[name]},
        sites=tally.sites,
        updates=tally.updates,
        outside=repair.outside,
        totals=tally.totals,
        patch=patch,
        left_out=shipping(repair.target.checkpoint.folder, repair.target.checkpoint.weights).left_out,
        wall_seconds=dict(stopwatch.seconds),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _origin(checkpoint: Checkpoint) -> Origin:
    return Origin(reference=checkpoint.reference, sha256=checkpoint.sha256)
