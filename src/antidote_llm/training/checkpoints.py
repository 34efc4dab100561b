"""A training's checkpoints: what a killed run goes on from."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from antidote_llm.artifacts.files import fsync_tree, write_text

_PREFIX = "checkpoint-"
_OBJECTIVE = "objective.safetensors"
# Written last, with the names of all files: a checkpoint without it was cut off, one that lacks a file half removed.
_WHOLE = "whole"
# Below this a write that failed had no room: files are written in pieces.
_FULL_BYTES = 1 << 20


def newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run's folder."""
    whole = [path for path in folder.glob(f"{_PREFIX}*") if _is_whole(path)]
    return max(whole, key=_step, default=None)


def keep_objective(checkpoint: Path, state: dict[str, Tensor]) -> None:
    """Add the objective's state to a checkpoint, and declare it whole."""
    save_file({name: value.detach().contiguous().clone() for name, value in state.items()}, checkpoint / _OBJECTIVE)
    fsync_tree(checkpoint)
    write_text(checkpoint / _WHOLE, "".join(f"{path.name}\n" for path in sorted(checkpoint.iterdir())))


@contextmanager
def giving_up(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint that could not be written whole, and say that the disk is full where it is.

    What lay there before is not whole from now on.

    Raises:
        OSError: The disk is full: torch and safetensors have errors of their own for that.
    """
    (checkpoint / _WHOLE).unlink(missing_ok=True)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free_bytes = shutil.disk_usage(checkpoint.parent).free
        shutil.rmtree(checkpoint, ignore_errors=True)
        if not isinstance(error, OSError) and free_bytes < _FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoint)) from error
        raise


def kept_objective(checkpoint: Path) -> dict[str, Tensor]:
    """Return the objective's state in a checkpoint."""
    return load_file(checkpoint / _OBJECTIVE)


def _is_whole(checkpoint: Path) -> bool:
    listed = checkpoint / _WHOLE
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    return bool(names) and all((checkpoint / name).exists() for name in names)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))
