"""What is said beforehand about memory: by the type that is loaded, for all processes alike, and with their sums."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from antidote_llm.calibration import collect as estimating
from antidote_llm.calibration.collect import Collection, estimated
from antidote_llm.choices import DtypeName
from antidote_llm.models.load import load_model
from antidote_llm.models.memory_budget import MemoryBudget
from antidote_llm.models.target import resolve_target
from tests.engine_architectures import write
from tests.engines import SETTINGS, rows


def collection(folder: Path, dtype: DtypeName = "auto") -> Collection:
    opened = load_model(str(folder), dtype=dtype, layers_on_disk=True)
    return Collection.of(opened, rows(), SETTINGS, resolve_target(opened, "weight").sites)


def test_layers_are_counted_in_the_type_that_they_are_loaded_in(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "llama", torch.bfloat16)
    narrow, wide = (collection(folder, dtype).opened.stream for dtype in ("auto", "float32"))
    assert narrow is not None and wide is not None
    assert narrow.held_bytes == narrow.layer_bytes == wide.layer_bytes
    assert wide.held_bytes == tuple(2 * size for size in narrow.held_bytes)


def test_all_processes_go_through_the_layers_as_often_as_the_one_with_least_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = collection(write(tmp_path / "model", "llama"))
    assert estimated(found).sweeps == 1
    monkeypatch.setattr(estimating, "largest", lambda sweeps: sweeps + 2)
    assert estimated(found).sweeps == 3


def test_processes_on_one_machine_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory().available
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert MemoryBudget().most_ram_bytes < free / 2
