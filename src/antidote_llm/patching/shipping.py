"""Which files of a checkpoint's folder ship with it, and how they get into another folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from antidote_llm.errors import changed_meanwhile
from antidote_llm.io.files import clone_file, link_file, sha256_file
from antidote_llm.io.safe_paths import require_enclosed
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.models.checkpoint import FileStamp, weight_file_names
from antidote_llm.models.checkpoint_files import Contents, contents

_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def shipping(folder: Path, weights: Collection[str] | None = None) -> Contents:
    """Return the names of the files of a checkpoint's folder that ship, and of what is left out.

    Args:
        folder: Where the checkpoint is.
        weights: The names of its weight files, where they are known: a file that is gone since then is no error here.

    Raises:
        UserError: The weights are not known, and the folder's index is broken or a shard is missing; or something in
            the folder leads out of it, or has a name that cannot be written down.
    """
    require_enclosed(folder)
    return contents(folder, _loaded_weights(folder, weights))


def shipped_files(folder: Path, weights: Collection[str] | None = None) -> list[Path]:
    """Return the files of a checkpoint's folder that ship: as :func:`shipping`."""
    return [folder / name for name in shipping(folder, weights).files]


def copy_checkpoint(
    folder: Path,
    target: Path,
    weights: Collection[str] | None = None,
    *,
    leave_out: frozenset[str] = frozenset(),
    hard_links: bool = False,
) -> None:
    """Copy the files that ship, but for those named; the copies share the blocks of the originals where the disk can.

    A hard link, for weights only, is the same file under a second name: a write to one changes both.

    Raises:
        UserError: As :func:`shipping`; or a file has gone meanwhile.
    """
    for name in shipping(folder, weights).files:
        if name not in leave_out:
            place = link_file if hard_links and name.lower().endswith(".safetensors") else clone_file
            try:
                place(folder / name, target / name)
            except FileNotFoundError as error:
                raise changed_meanwhile(folder / name) from error


def shipped_stamps(folder: Path, weights: Collection[str] | None = None) -> dict[str, FileStamp]:
    """Return what the files that ship look like, by name: as :func:`shipping`.

    Raises:
        UserError: As :func:`shipping`; or a file has gone meanwhile.
    """
    found = {}
    for name in shipping(folder, weights).files:
        try:
            found[name] = FileStamp.of(folder / name)
        except FileNotFoundError as error:
            raise changed_meanwhile(folder / name) from error
    return found


def shipped_sha256(folder: Path, names: Collection[str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the hashes of files that ship, by name.

    Args:
        folder: Where they are.
        names: Their names.
        known: Hashes that are known already.

    Raises:
        UserError: A weight file is truncated, or a file has gone meanwhile.
    """
    found = {}
    for name in sorted(names):
        if name.lower().endswith(".safetensors"):
            open_tensor_file(folder / name)
        try:
            found[name] = (known or {}).get(name) or sha256_file(folder / name)
        except FileNotFoundError as error:
            raise changed_meanwhile(folder / name) from error
    return found


def require_unchanged(folder: Path, before: Mapping[str, FileStamp], weights: Collection[str] | None = None) -> None:
    """Refuse a folder whose files that ship are no longer those that :func:`shipped_stamps` found.

    Raises:
        UserError: Names the file.
    """
    after = shipped_stamps(folder, weights)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise changed_meanwhile(folder / name)


def _loaded_weights(folder: Path, weights: Collection[str] | None) -> set[str]:
    if weights is None:
        whole = (folder / "model.safetensors").is_file() or not (folder / _INDEX).is_file()
        weights = () if whole else weight_file_names(folder, "model.safetensors")
    sharded = set(weights) - set(_WEIGHTS)
    return {*_WEIGHTS, *sharded, *([_INDEX] if sharded else [])}
