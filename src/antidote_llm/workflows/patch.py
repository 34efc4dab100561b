"""Applies and reverts patches: a copy of a checkpoint, checked by hash before and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antidote_llm.errors import UserError, setting
from antidote_llm.io.files import sha256_file, sha256_json
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.models.checkpoint import locate
from antidote_llm.models.checkpoint_files import CODE_SUFFIX, is_document
from antidote_llm.patching.apply import Direction, require_fits, require_unchanged_files, transform
from antidote_llm.patching.patch import Patch, read_patch
from antidote_llm.patching.shipping import (
    copy_checkpoint,
    require_unchanged,
    shipped_sha256,
    shipped_stamps,
    shipping,
)
from antidote_llm.workflows.reporter import LogReporter, Reporter
from antidote_llm.workflows.result import complete


@dataclass(frozen=True)
class PatchResult:
    """A checkpoint that a patch was applied to, or taken off.

    Attributes:
        out: Its folder.
        finished_before: Whether it was there already.
        manifest: What it was made from.
        files: The sha256 of every changed file, by name.
        left_out: Files that no class loads, which were not copied.
        remarks: What the user should know.
        verified: Which hashes were compared, in words.
    """

    out: Path
    finished_before: bool
    manifest: dict[str, Any]
    files: Mapping[str, str]
    left_out: list[str]
    remarks: list[str]
    verified: str

    def json_value(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        known = {"out": str(self.out), "finished_before": self.finished_before, **self.manifest}
        return {**known, "left_out": self.left_out, "remarks": self.remarks}


def apply_patch(
    patch: str | Path | Patch,
    onto: str | Path,
    out: str | Path,
    *,
    hard_links: bool = False,
    reporter: Reporter | None = None,
) -> PatchResult:
    """Write a copy of a checkpoint with a patch applied.

    Args:
        patch: A ``patch.safetensors``, the folder of a repair, or what ``read_patch`` gives.
        onto: Folder or Hub id of the checkpoint or adapter that was repaired; it is not modified.
        out: Where the result goes.
        hard_links: Whether files that do not change are linked instead of copied.
        reporter: Hears warnings; by default the package's logger.

    Raises:
        UserError: The patch is damaged, or made for other bytes.
    """
    found = patch if isinstance(patch, Patch) else read_patch(patch)
    return _transformed(found, str(onto), Path(out), "apply", hard_links, reporter or LogReporter())


def revert_patch(
    patch: str | Path | Patch,
    onto: str | Path,
    out: str | Path,
    *,
    hard_links: bool = False,
    reporter: Reporter | None = None,
) -> PatchResult:
    """Write a copy of a repaired checkpoint with the patch taken off: the original bytes.

    Args:
        patch: A ``patch.safetensors``, the folder of a repair, or what ``read_patch`` gives.
        onto: Folder or Hub id of the repaired checkpoint or adapter; it is not modified.
        out: Where the result goes.
        hard_links: Whether files that do not change are linked instead of copied.
        reporter: Hears warnings; by default the package's logger.

    Raises:
        UserError: The patch is damaged, or made for other bytes.
    """
    found = patch if isinstance(patch, Patch) else read_patch(patch)
    return _transformed(found, str(onto), Path(out), "revert", hard_links, reporter or LogReporter())


def _transformed(
    patch: Patch, onto: str, out: Path, direction: Direction, hard_links: bool, reporter: Reporter
) -> PatchResult:
    folder = locate(onto, with_code=_has_code(patch))
    require_fits(patch, folder)
    stamps, found = shipped_stamps(folder), shipping(folder)
    files = {
        file.path: file.sha256_after if direction == "apply" else file.sha256_before for file in patch.description.files
    }
    unknown_code = _unknown_code(patch, onto, found.code)
    sha256 = shipped_sha256(folder, stamps.keys() - files.keys() - unknown_code)
    remarks = require_unchanged_files(patch, folder, sha256)
    digest = sha256_json(patch.description.model_dump(mode="json"))
    copied = {name: value for name, value in sha256.items() if not is_document(name)}
    manifest = {"kind": f"patch {direction}", "patch": digest, "files": files, "copied": copied}

    def write(staging: Path) -> None:
        transform(patch, folder, staging, direction)
        copy_checkpoint(folder, staging, leave_out=frozenset({*files, *unknown_code}), hard_links=hard_links)
        require_unchanged(folder, stamps)

    finished_before = complete(
        ResultFolder(out, manifest, manifest_at=".antidote.json", inputs=[folder]),
        write,
        reporter,
        require=lambda: _require_as_finished(out, {**files, **copied}),
    )
    for remark in remarks:
        reporter.warn(remark)
    left_out = [*found.left_out, *sorted(unknown_code)]
    return PatchResult(
        out, finished_before, manifest, files, left_out, list(remarks), _verified(patch, len(files), len(copied))
    )


def _has_code(patch: Patch) -> bool:
    return any(file.path.endswith(CODE_SUFFIX) for file in patch.description.unchanged)


def _unknown_code(patch: Patch, onto: str, code: Collection[str]) -> set[str]:
    """Return the code in the Hub's cache of a model that was repaired without its code: it may be fetched since."""
    from_hub = not Path(onto).expanduser().is_dir()
    return set(code) if from_hub and patch.sha256 is not None and not _has_code(patch) else set()


def _verified(patch: Patch, changed: int, same: int) -> str:
    """Say which hashes were compared."""
    if patch.sha256 is None:
        return f"verified by sha256: {changed} changed files; not the patch itself, nor any other file"
    return f"verified by sha256: the patch itself, {changed} changed and {same} unchanged files"


def _require_as_finished(out: Path, files: Mapping[str, str]) -> None:
    for name, sha256 in files.items():
        if not (out / name).is_file() or sha256_file(out / name) != sha256:
            raise UserError(
                f"{out} has been changed since it was finished ({name}): remove it or choose another {setting('out')}"
            )
