"""A training's checkpoints, from which a killed run resumes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from antidote_llm.errors import KeptError
from antidote_llm.io.files import fsync_folder, fsync_tree, remove, sha256_file, sha256_json, write_failure, write_json
from antidote_llm.io.strict_json import parse_model

_NAME = re.compile(r"checkpoint-(\d+)")
_OBJECTIVE = "objective.safetensors"
# Written last, with the sha256 of every file: without it, or without a file that it lists, a checkpoint is incomplete.
_WHOLE = "whole"


class _Manifest(BaseModel):
    """The run that a checkpoint is of, its step, the hash of every file, and the hash of all that."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: str
    step: int
    files: dict[str, str]
    sha256: str

    def own_sha256(self) -> str:
        return sha256_json(self.model_dump(exclude={"sha256"}))


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a run's folder; its files are not read."""
    return max(filter(_is_complete, _checkpoints(folder)), key=_step, default=None)


def unusable(folder: Path) -> list[str]:
    """Return the names of incomplete checkpoints that are newer than the newest complete one."""
    found = newest(folder)
    last = -1 if found is None else _step(found)
    return [path.name for path in sorted(_checkpoints(folder), key=_step) if _step(path) > last]


def require_sound(checkpoint: Path, key: str) -> None:
    """Refuse a damaged checkpoint, before anything in it is loaded.

    The hashes find damage, not an attack: whoever can write to the folder can change files and hashes.

    Args:
        checkpoint: The folder, with its ``whole``.
        key: What the run that resumes depends on.

    Raises:
        KeptError: Names the first file that is missing, changed, or a link, and from which step a run would resume
            without this checkpoint.
    """
    if (wrong := _first_wrong(checkpoint, key)) is None:
        return
    older = [path for path in _checkpoints(checkpoint.parent) if _step(path) < _step(checkpoint) and _is_complete(path)]
    usable = max((path for path in older if _first_wrong(path, key) is None), key=_step, default=None)
    way = "starts again" if usable is None else f"goes on from {usable.name}"
    raise KeptError(f"{checkpoint}: {wrong}: remove that folder, and the same command {way}")


def save_objective(checkpoint: Path, state: dict[str, Tensor], key: str = "") -> None:
    """Add the objective's state to a checkpoint, and mark it complete.

    Args:
        checkpoint: The folder, with all files of the trainer.
        state: The objective's state.
        key: What the run depends on: a run with another key does not resume from here.
    """
    save_file({name: value.detach().contiguous().clone() for name, value in state.items()}, checkpoint / _OBJECTIVE)
    fsync_tree(checkpoint)
    files = {name: sha256_file(checkpoint / name) for name in _files(checkpoint)}
    manifest = _Manifest(key=key, step=_step(checkpoint), files=files, sha256="")
    write_json(checkpoint / _WHOLE, manifest.model_copy(update={"sha256": manifest.own_sha256()}).model_dump())
    fsync_folder(checkpoint.parent)


@contextmanager
def removed_on_failure(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint that could not be written completely; an older one there becomes incomplete.

    Raises:
        OSError: The disk is full or fails, also where torch or safetensors raised an error of their own.
    """
    (checkpoint / _WHOLE).unlink(missing_ok=True)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        problem = write_failure(error, checkpoint.parent)
        remove(checkpoint)
        if problem is None or problem is error:
            raise
        raise problem from error


def load_objective(checkpoint: Path) -> dict[str, Tensor]:
    """Return the objective's state in a checkpoint."""
    return load_file(checkpoint / _OBJECTIVE)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _files(checkpoint: Path) -> list[str]:
    """Return the names of all files and links in a checkpoint but the manifest."""
    found = (path for path in checkpoint.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for path in found if (name := path.relative_to(checkpoint).as_posix()) != _WHOLE)


def _is_complete(checkpoint: Path) -> bool:
    """Say whether a checkpoint has its manifest and every file that it lists; contents are not checked."""
    manifest = _manifest(checkpoint)
    names = () if manifest is None else manifest.files
    return (checkpoint / _WHOLE).exists() and all((checkpoint / name).exists() for name in names)


def _manifest(checkpoint: Path) -> _Manifest | None:
    """Return a checkpoint's manifest; None where it is damaged."""
    if not (checkpoint / _WHOLE).is_file():
        # Reading a pipe would block.
        return None
    try:
        manifest = parse_model(_Manifest, (checkpoint / _WHOLE).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest if manifest.sha256 == manifest.own_sha256() else None


def _first_wrong(checkpoint: Path, key: str) -> str | None:
    """Return what is wrong with a checkpoint; None where nothing is."""
    links = [path for path in (checkpoint, *checkpoint.rglob("*")) if path.is_symlink()]
    if links:
        return f"{links[0].name} is a link"
    manifest = _manifest(checkpoint)
    if manifest is None:
        return f"{_WHOLE} is damaged"
    if manifest.step != _step(checkpoint) or manifest.key != key:
        return f"it was kept as checkpoint-{manifest.step}" + (" of another run" if manifest.key != key else "")
    there = set(_files(checkpoint))
    for name, sha256 in manifest.files.items():
        if name not in there:
            return f"{name} is missing"
        if not (checkpoint / name).is_file() or sha256_file(checkpoint / name) != sha256:
            return f"{name} is damaged"
    more = sorted(there - manifest.files.keys())
    return f"{more[0]} was not kept there" if more else None
