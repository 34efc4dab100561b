"""A training's checkpoints: what a killed run goes on from."""

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
# Written last, with the sha256 of every file: a checkpoint without it was cut off, one that lacks a file half removed.
_WHOLE = "whole"


class _Kept(BaseModel):
    """What is kept about a checkpoint: the run, the step, every file's hash, and the hash of all that."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key: str
    step: int
    files: dict[str, str]
    sha256: str

    def own_sha256(self) -> str:
        return sha256_json(self.model_dump(exclude={"sha256"}))


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder that was written to its end; nothing in it is read."""
    return max(filter(_is_whole, _checkpoints(folder)), key=_step, default=None)


def unusable(folder: Path) -> list[str]:
    """Return the names of newer checkpoints than the newest that can be used: cut off, or half removed."""
    found = newest(folder)
    last = -1 if found is None else _step(found)
    return [path.name for path in sorted(_checkpoints(folder), key=_step) if _step(path) > last]


def require_sound(checkpoint: Path, key: str) -> None:
    """Refuse a checkpoint that is not what was kept, before anything in it is loaded.

    The hashes are beside the files: they tell of damage. Who may write there can change both.

    Args:
        checkpoint: The folder, with its ``whole``.
        key: What the run that goes on from it depends on.

    Raises:
        KeptError: Names the first file that is missing, another, or a link, and from where a run could go on without
            this checkpoint.
    """
    if (wrong := _first_wrong(checkpoint, key)) is None:
        return
    older = [path for path in _checkpoints(checkpoint.parent) if _step(path) < _step(checkpoint) and _is_whole(path)]
    usable = max((path for path in older if _first_wrong(path, key) is None), key=_step, default=None)
    way = "starts again" if usable is None else f"goes on from {usable.name}"
    raise KeptError(f"{checkpoint}: {wrong}: remove that folder, and the same command {way}")


def keep_objective(checkpoint: Path, state: dict[str, Tensor], key: str = "") -> None:
    """Add the objective's state to a checkpoint, and declare it whole.

    Args:
        checkpoint: The folder, with all that the trainer keeps.
        state: The objective's.
        key: What the run depends on: another run does not go on from here.
    """
    save_file({name: value.detach().contiguous().clone() for name, value in state.items()}, checkpoint / _OBJECTIVE)
    fsync_tree(checkpoint)
    files = {name: sha256_file(checkpoint / name) for name in _files(checkpoint)}
    kept = _Kept(key=key, step=_step(checkpoint), files=files, sha256="")
    write_json(checkpoint / _WHOLE, kept.model_copy(update={"sha256": kept.own_sha256()}).model_dump())
    fsync_folder(checkpoint.parent)


@contextmanager
def giving_up(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint that could not be written whole, and say why in the system's words.

    What lay there before is not whole from now on.

    Raises:
        OSError: The disk is full or fails: torch and safetensors have errors of their own for that.
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


def kept_objective(checkpoint: Path) -> dict[str, Tensor]:
    """Return the objective's state in a checkpoint."""
    return load_file(checkpoint / _OBJECTIVE)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _files(checkpoint: Path) -> list[str]:
    """Return the names of everything in a checkpoint but folders and the word that it is whole."""
    found = (path for path in checkpoint.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for path in found if (name := path.relative_to(checkpoint).as_posix()) != _WHOLE)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end and not half removed; whether it is sound is not asked."""
    kept = _kept(checkpoint)
    names = () if kept is None else kept.files
    return (checkpoint / _WHOLE).exists() and all((checkpoint / name).exists() for name in names)


def _kept(checkpoint: Path) -> _Kept | None:
    """Return what was kept about a checkpoint; None where that is damaged."""
    if not (checkpoint / _WHOLE).is_file():
        # A pipe would be waited for without an end.
        return None
    try:
        kept = parse_model(_Kept, (checkpoint / _WHOLE).read_bytes())
    except (OSError, ValueError):
        return None
    return kept if kept.sha256 == kept.own_sha256() else None


def _first_wrong(checkpoint: Path, key: str) -> str | None:
    """Return what is wrong with a checkpoint; None where it is what was kept."""
    links = [path for path in (checkpoint, *checkpoint.rglob("*")) if path.is_symlink()]
    if links:
        return f"{links[0].name} is a link"
    kept = _kept(checkpoint)
    if kept is None:
        return f"{_WHOLE} is damaged"
    if kept.step != _step(checkpoint) or kept.key != key:
        return f"it was kept as checkpoint-{kept.step}" + (" of another run" if kept.key != key else "")
    there = set(_files(checkpoint))
    for name, sha256 in kept.files.items():
        if name not in there:
            return f"{name} is missing"
        if not (checkpoint / name).is_file() or sha256_file(checkpoint / name) != sha256:
            return f"{name} is damaged"
    more = sorted(there - kept.files.keys())
    return f"{more[0]} was not kept there" if more else None
