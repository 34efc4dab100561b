"""Sums and hidden states on the disk, so that a run that was cut off goes on to the same bits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from antidote_llm.artifacts.files import write_bytes
from antidote_llm.artifacts.hashing import sha256_bytes
from antidote_llm.errors import UserError

# Keeping takes at most this part of the time that it can save, and nobody minds a second.
_COST = 0.05
_AT_LEAST_SECONDS = 1.0
_HASH, _KEY = "data_sha256", "key"


@dataclass
class KeptState:
    """One file of tensors that is replaced as work goes on, no oftener than is worth its while.

    Attributes:
        path: Where it lies.
        key: What it belongs to: a file of another key counts for nothing.
    """

    path: Path
    key: str
    _last: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    @property
    def due(self) -> bool:
        """Whether keeping it again is cheap beside the work since the last time."""
        since = time.monotonic() - self._last
        return since >= _AT_LEAST_SECONDS and self._took <= _COST * since

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace what is kept.

        Raises:
            UserError: The file cannot be written.
        """
        start = time.monotonic()
        try:
            write_tensors(self.path, tensors, {_KEY: self.key})
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: cannot be written: {error.strerror}: make room, or choose another --out"
            ) from error
        self._last = time.monotonic()
        self._took = self._last - start

    def read(self) -> dict[str, Tensor] | None:
        """Return what was kept; None where there is nothing, or it is damaged or another run's."""
        found = read_tensors(self.path)
        return None if found is None or found[1].get(_KEY) != self.key else found[0]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with a hash over all of them."""
    held = {name: values.contiguous() for name, values in tensors.items()}
    write_bytes(path, safetensors.torch.save(held, {**metadata, _HASH: _sha256(held)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return what :func:`write_tensors` wrote; None where there is nothing, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError:
        return None
    return (tensors, metadata) if metadata.get(_HASH) == _sha256(tensors) else None


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    parts = [f"{name}{tuple(tensors[name].shape)}".encode() for name in sorted(tensors)]
    flat = [tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name in sorted(tensors)]
    return sha256_bytes(b"".join([*parts, *flat]))
