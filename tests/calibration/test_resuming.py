"""Statistics whose collection was cut off are finished by the next run, to the same bits and without doing all anew."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from antidote_llm.calibration import layer_by_layer as layerwise
from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.resume import KeptState, read_tensors, write_tensors
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.models.layer_stream import PartLoader
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from tests.engine_architectures import write
from tests.engines import LENGTHS, SETTINGS, assert_same_bits, statistics


class Killed(Exception):  # noqa: N818
    """Stands for whatever cuts a run off."""


def cut_off_after(calls: int) -> Callable[[int], None]:
    left = [calls]

    def progress(rows: int) -> None:
        del rows
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return progress


@pytest.fixture
def always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptState, "due", True)


@pytest.fixture
def layers_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    load = PartLoader.load

    def watched(self: PartLoader, prefixes: Sequence[str]) -> dict[str, Tensor]:
        read.extend(prefix for prefix in prefixes if re.search(r"\.\d+$", prefix))
        return load(self, prefixes)

    monkeypatch.setattr(PartLoader, "load", watched)
    return read


@pytest.mark.parametrize("name", ["llama", "bamba", "gpt_oss", "mamba2"])
@pytest.mark.parametrize(("sweeps", "calls", "left"), [(1, 1, [1, 2]), (1, 2, [2]), (2, 2, [2, 0, 1, 2]), (2, 5, [2])])
@pytest.mark.usefixtures("always_kept")
def test_a_run_over_layers_goes_on_where_it_was_cut_off(
    name: str, sweeps: int, calls: int, left: list[int], tmp_path: Path, layers_read: list[str]
) -> None:
    folder = write(tmp_path / "model", name, torch.bfloat16)
    wanted = again(folder, None, sweeps=sweeps)
    with pytest.raises(Killed):
        again(folder, tmp_path / "kept", sweeps=sweeps, progress=cut_off_after(calls))
    layers_read.clear()
    told: list[int] = []
    assert_same_bits(again(folder, tmp_path / "kept", sweeps=sweeps, progress=told.append), wanted)
    assert [int(each.rsplit(".", 1)[1]) for each in layers_read] == left
    assert sum(told) == len(LENGTHS)


def again(folder: Path, work: Path | None, **options: Any) -> Moments:
    """Collect as another process would, from the disk."""
    opened = load_model(str(folder), layers_on_disk=True)
    return statistics(opened, resolve_target(opened, "weight"), work=work, **options)


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.usefixtures("always_kept")
def test_a_run_in_memory_goes_on_where_it_was_cut_off(calls: int, tmp_path: Path) -> None:
    opened = load_model(str(write(tmp_path / "model", "qwen3_moe")))
    target = resolve_target(opened, "weight")
    passes: list[int] = []
    opened.causal_model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    wanted, everything = statistics(opened, target), len(passes)
    with pytest.raises(Killed):
        statistics(opened, target, work=tmp_path / "kept", progress=cut_off_after(calls))
    passes.clear()
    told: list[int] = []
    assert_same_bits(statistics(opened, target, work=tmp_path / "kept", progress=told.append), wanted)
    assert len(passes) == everything - calls and sum(told) == len(LENGTHS)


@pytest.mark.parametrize("damage", ["another run's", "cut"])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.usefixtures("always_kept")
def test_what_does_not_belong_to_a_run_is_not_gone_on_from(on_disk: bool, damage: str, tmp_path: Path) -> None:
    opened = load_model(str(write(tmp_path / "model", "llama")), layers_on_disk=on_disk)
    target = resolve_target(opened, "weight")
    wanted = statistics(opened, target)
    settings = SETTINGS if damage == "cut" else CalibrationSettings(batch_tokens=24, tokens="response")
    with pytest.raises(Killed):
        statistics(opened, target, settings, work=tmp_path / "kept", progress=cut_off_after(2))
    (kept,) = (tmp_path / "kept").iterdir()
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-7])
    assert_same_bits(statistics(opened, target, work=tmp_path / "kept"), wanted)


@pytest.mark.parametrize("begun_on_disk", [False, True])
@pytest.mark.usefixtures("always_kept")
def test_what_one_engine_left_is_nothing_to_the_other(begun_on_disk: bool, tmp_path: Path) -> None:
    folder = str(write(tmp_path / "model", "llama"))
    first, second = (load_model(folder, layers_on_disk=on_disk) for on_disk in (begun_on_disk, not begun_on_disk))
    wanted = statistics(second, resolve_target(second, "weight"))
    with pytest.raises(Killed):
        statistics(first, resolve_target(first, "weight"), work=tmp_path / "kept", progress=cut_off_after(2))
    assert_same_bits(statistics(second, resolve_target(second, "weight"), work=tmp_path / "kept"), wanted)


def test_all_processes_are_asked_where_they_stand_even_by_one_that_found_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def nobody_agrees(value: object) -> bool:
        asked.append(value)
        return False

    monkeypatch.setattr(layerwise, "all_equal", nobody_agrees)
    again(write(tmp_path / "model", "llama"), tmp_path / "kept")
    assert asked == [None]


@pytest.mark.usefixtures("always_kept")
def test_shares_that_are_done_are_held_as_one(tmp_path: Path) -> None:
    opened = load_model(str(write(tmp_path / "model", "llama")))
    with pytest.raises(Killed):
        statistics(opened, resolve_target(opened, "weight"), work=tmp_path / "kept", progress=cut_off_after(3))
    (path,) = (tmp_path / "kept").iterdir()
    found = read_tensors(path)
    assert found is not None
    assert len({name.partition("/")[0] for name in found[0] if name.endswith("sum_squares")}) == 2


def test_keeping_tensors_takes_no_memory_of_their_size(tmp_path: Path) -> None:
    hidden = {f"hidden/{place}": torch.zeros(1 << 22, dtype=torch.bfloat16) for place in range(16)}
    resident, most = psutil.Process().memory_info().rss, [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], psutil.Process().memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    write_tensors(tmp_path / "kept.safetensors", hidden, {"key": "k"})
    done.set()
    watcher.join()
    assert most[0] - resident < sum(values.nbytes for values in hidden.values()) / 4
    found = read_tensors(tmp_path / "kept.safetensors")
    assert found is not None and found[0].keys() == hidden.keys() and found[1]["key"] == "k"
