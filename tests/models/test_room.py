"""What memory there is for a model's weights."""

from __future__ import annotations

import pytest
import torch

from antidote_llm.models.room import Room


def test_layers_that_are_spread_may_take_what_all_gpus_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 2 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    place, needed = torch.device("cuda"), 2 * 10**9
    assert not Room().holds(needed, place)
    assert Room().holds(needed, place, spread=True)
    assert not Room(vram_bytes=10**8).holds(needed, place, spread=True)
