"""Checkpoints of sums and hidden states, from which an interrupted run resumes and gives the same bits."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
from torch import Tensor

from antidote_llm.errors import KeptError, UserError, setting
from antidote_llm.io.files import atomic_writer
from antidote_llm.io.safetensors_files import TensorEntry, encode_header
from antidote_llm.io.torch_tensors import DTYPE_NAMES, tensor_bytes

# Writing takes at most this part of the time, and happens at most once a second.
_COST = 0.05
_AT_LEAST_SECONDS = 1.0
_HASH, _KEY = "data_sha256", "key"


_log = logging.getLogger(__name__)


@dataclass
class KeptState:
    """A rate-limited checkpoint: one file of tensors that is replaced as work goes on.

    Attributes:
        path: The file.
        key: The run that it belongs to: a file with another key is not used.
    """

    path: Path
    key: str
    _last: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    @property
    def due(self) -> bool:
        """Whether writing it again is cheap compared with the work since the last time."""
        since = time.monotonic() - self._last
        return since >= _AT_LEAST_SECONDS and self._took <= _COST * since

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file.

        Raises:
            UserError: The file cannot be written.
        """
        start = time.monotonic()
        try:
            write_tensors(self.path, tensors, {_KEY: self.key})
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: cannot be written: {error.strerror}: make room, or choose another "
                f"{setting('out')}"
            ) from error
        self._last = time.monotonic()
        self._took = self._last - start

    def read(self) -> dict[str, Tensor] | None:
        """Return the file's tensors; None if there is no file, or, with a warning, another run's or a damaged one."""
        return read_kept(self.path, self.key)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a hash of all tensors, without a copy of them in memory.

    Args:
        path: The file, which is replaced.
        tensors: On the CPU.
        metadata: What else the file's header says.
    """
    entries, end = [], 0
    # The widest first, so that each is aligned to the size of its entries.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        begin, end = end, end + tensors[name].nbytes
        entries.append(TensorEntry(name, DTYPE_NAMES[tensors[name].dtype], tuple(tensors[name].shape), begin, end))
    header = encode_header(entries, {**metadata, _HASH: _sha256(tensors)}, compact=False)
    with atomic_writer(path) as stream:
        stream.write(header)
        for entry in entries:
            stream.write(tensor_bytes(tensors[entry.key]))


def read_kept(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return the tensors of a file with a key; None, with a warning, if it has another key or is damaged.

    Raises:
        KeptError: A folder is there.
    """
    if path.is_dir():
        raise KeptError(f"{path} is a folder where statistics are kept in a file: remove it")
    if not path.is_file():
        return None
    found = read_tensors(path)
    if found is not None and found[1].get(_KEY) == key:
        return found[0]
    what = "is damaged" if found is None else "belongs to another run"
    _log.warning("%s %s and is not used: statistics are collected anew", path, what)
    return None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return the tensors and metadata that :func:`write_tensors` wrote; None if there is no file or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, OverflowError, RuntimeError, TypeError):
        # A damaged header may claim types and shapes that torch refuses.
        return None
    return (tensors, metadata) if metadata.get(_HASH) == _sha256(tensors) else None


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
    for name in sorted(tensors):
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()
