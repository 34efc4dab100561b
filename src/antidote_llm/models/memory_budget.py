"""What memory a model takes, and what of it there is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from antidote_llm.io.processes import neighbour_count
from antidote_llm.io.safetensors_files import FLOAT_BYTES
from antidote_llm.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

# What a forward pass needs in addition to the weights, at least, and the peak of loading as a factor.
_BESIDE_BYTES, _LOADING = 300_000_000, 1.05
_BYTES_OF_DTYPES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_CGROUP = Path("/sys/fs/cgroup")
# The files with the limit and the use, of the second and of the first version of control groups.
_GROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


@dataclass(frozen=True)
class MemoryBudget:
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
        # Processes that were started together ask at the same time, and each takes its share.
        free = resident_bytes() + _available_bytes() // neighbour_count()
        return free if self.ram_bytes is None else min(self.ram_bytes, free)

    def most_vram_bytes(self, device: torch.device) -> int:
        """What the process may hold on a GPU at most."""
        import torch

        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
        return free if self.vram_bytes is None else min(self.vram_bytes, free)

    def bound(self, device: torch.device) -> None:
        """Limit the memory that this process can allocate on a GPU, where a limit is set: more raises out of memory."""
        import torch

        if device.type == "cuda" and self.vram_bytes is not None:
            whole = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.vram_bytes / whole), device)

    def holds(self, needed_bytes: int, device: torch.device, *, spread: bool = False) -> bool:
        """Whether weights of a size fit where they are computed with: on one device, or spread over all GPUs."""
        import torch

        needed = int(needed_bytes * _LOADING) + _BESIDE_BYTES
        if device.type == "cuda":
            devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] if spread else [device]
            return needed <= sum(map(self.most_vram_bytes, devices))
        return resident_bytes() + needed <= self.most_ram_bytes


def whole_bytes(checkpoints: Iterable[Checkpoint], dtype: str) -> int:
    """Return what checkpoints take in memory, their floating-point weights in the type that they are opened in."""
    item_bytes = None if dtype == "auto" else _BYTES_OF_DTYPES[dtype]
    total = 0
    for checkpoint in checkpoints:
        for file in checkpoint.weights.values():
            for entry in file.entries.values():
                is_float = item_bytes is not None and entry.dtype in FLOAT_BYTES
                total += math.prod(entry.shape) * item_bytes if is_float and item_bytes else entry.end - entry.begin
    return total


def resident_bytes() -> int:
    """Return what this process holds in memory now."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def _available_bytes() -> int:
    """Return the memory that is free, of the machine and of the container or control group of this process."""
    return max(0, min([int(psutil.virtual_memory().available), *_free_in_groups()]))


def _free_in_groups() -> Iterator[int]:
    """Yield what is left to every control group that this process is in; pages of files can be given back."""
    for folder in _groups():
        for most_name, used_name in _GROUP_FILES:
            try:
                most, used = (folder / most_name).read_text().strip(), int((folder / used_name).read_text())
                stat = (folder / "memory.stat").read_text()
            except OSError:
                # Another version of the interface, or a group without a limit.
                continue
            files = [int(line.split()[1]) for line in stat.splitlines() if line.split()[0] in ("file", "total_cache")]
            if most != "max":
                yield int(most) - used + sum(files)


def _groups() -> Iterator[Path]:
    yield _CGROUP
    yield _CGROUP / "memory"
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            yield _CGROUP / kinds / path.lstrip("/")
