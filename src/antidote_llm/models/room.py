"""What memory a model takes, and what of it there is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.tensor_files import DTYPES

# What a forward pass takes beside the weights, at least, and what loading takes for a moment.
_BESIDE_BYTES, _LOADING = 300_000_000, 1.05
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """How much memory may be used, in bytes.

    Attributes:
        ram_bytes: Resident memory of the process at most; None for what is free.
        vram_bytes: Memory of the GPU at most; None for what is free.
    """

    ram_bytes: int | None = None
    vram_bytes: int | None = None

    @property
    def most_ram_bytes(self) -> int:
        """What the process may hold at most, with what it holds now."""
        free = resident_bytes() + _available_bytes()
        return free if self.ram_bytes is None else min(self.ram_bytes, free)

    def most_vram_bytes(self, device: torch.device) -> int:
        """What the process may hold on a GPU at most."""
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
        return free if self.vram_bytes is None else min(self.vram_bytes, free)

    def holds(self, needed_bytes: int, device: torch.device) -> bool:
        """Whether weights of a size fit where they are computed with."""
        needed = int(needed_bytes * _LOADING) + _BESIDE_BYTES
        if device.type == "cuda":
            return needed <= self.most_vram_bytes(device)
        return resident_bytes() + needed <= self.most_ram_bytes


def whole_bytes(checkpoints: Iterable[Checkpoint], dtype: str) -> int:
    """Return what checkpoints take in memory, their floating-point weights in the type that they are opened in."""
    item_bytes = None if dtype == "auto" else getattr(torch, dtype).itemsize
    total = 0
    for checkpoint in checkpoints:
        for file in checkpoint.weights.values():
            for entry in file.entries.values():
                is_float = item_bytes is not None and entry.dtype in DTYPES
                total += math.prod(entry.shape) * item_bytes if is_float and item_bytes else entry.end - entry.begin
    return total


def resident_bytes() -> int:
    """Return what this process holds in memory now."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def _available_bytes() -> int:
    """Return the memory that is free, of the machine and of the container that the process runs in."""
    free = int(psutil.virtual_memory().available)
    try:
        most = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:
        # No container, or one that says nothing.
        return free
    return free if most == "max" else min(free, int(most) - used)
