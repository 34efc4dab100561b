"""The memory budget for a model's weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from antidote_llm.models.memory_budget import MemoryBudget


def test_layers_that_are_spread_may_use_the_memory_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 2 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    place, needed = torch.device("cuda"), 2 * 10**9
    assert not MemoryBudget().holds(needed, place)
    assert MemoryBudget().holds(needed, place, spread=True)
    assert not MemoryBudget(vram_bytes=10**8).holds(needed, place, spread=True)


def test_a_limit_on_the_gpu_is_enforced_by_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80_000_000_000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: kept.append(given))
    gpu = torch.device("cuda", 0)
    MemoryBudget(vram_bytes=20_000_000_000).bound(gpu)
    MemoryBudget().bound(gpu)
    MemoryBudget(vram_bytes=1).bound(torch.device("cpu"))
    assert kept == [(0.25, gpu)]
