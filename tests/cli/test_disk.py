"""Full disks, folders without the right to write, and inputs that change meanwhile: one line, and nothing left."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from antidote_llm.io.files import sha256_file
from tests.cli.bad_targets import adapter, delta, sharded, tuned, weight
from tests.cli.changing import CHANGES, meanwhile, said
from tests.cli.command import Command, Place, tree
from tests.cli.disks import bound_by_modes, fill, make_read_only, small_disk

RESULT = Path("results") / "of today" / "repaired"
TARGETS = {"adapter": adapter, "delta": delta, "weight": weight}


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk with room for a repair, and for nothing besides."""
    with small_disk(tmp_path_factory.mktemp("disks") / "small", "2M") as path:
        yield path


@pytest.mark.parametrize("target", TARGETS)
def test_no_room_is_seen_before_anything_is_written(
    target: str, place: Place, antidote: Command, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antidote_llm.repairs.write.PatchedCopies", lambda *_: pytest.fail("it was written to"))
    filler = fill(disk, 8192)
    arguments = [*TARGETS[target](place), "--out", disk / RESULT]
    before = tree(place.root)
    said(antidote(*arguments), "no space", str(disk), "MB", "make room", "--out")
    assert tree(place.root) == before
    assert list(disk.iterdir()) == [filler]


@pytest.mark.parametrize("spare_kilobytes", [0, 4, 16, 24, 40, 64])
def test_a_disk_that_fills_up_leaves_nothing(
    spare_kilobytes: int, place: Place, antidote: Command, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*adapter(place), "--out", disk / RESULT]
    before = tree(place.root)
    meanwhile(monkeypatch, STEPS["copying"], lambda: fill(disk, spare_kilobytes << 10))
    said(antidote(*arguments), "No space left on device", str(disk / RESULT), "--out")
    assert tree(place.root) == before
    (filler,) = disk.iterdir()
    filler.unlink()
    antidote.done(*arguments)


@pytest.mark.parametrize("spare_kilobytes", [0, 8])
@pytest.mark.parametrize("command", ["apply", "revert", "evaluate"])
def test_other_commands_leave_nothing_on_a_full_disk(
    command: str, spare_kilobytes: int, place: Place, antidote: Command, disk: Path
) -> None:
    finished = place.root / "finished"
    arguments: list[object] = ["evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", 2]
    if command != "evaluate":
        antidote.done(*place.repair(), "--out", finished)
        onto = place.adapter if command == "apply" else finished / "model"
        arguments = ["patch", command, finished, "--onto", onto]
    filler, before = fill(disk, spare_kilobytes << 10), tree(place.root)
    said(antidote(*arguments, "--out", disk / RESULT), "No space left on device", str(disk / RESULT), "--out")
    assert tree(place.root) == before
    assert list(disk.iterdir()) == [filler]


@pytest.mark.parametrize("target", TARGETS)
def test_a_disk_that_fails_at_any_flush_leaves_nothing(
    target: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TARGETS[target](place), "--no-cache"]
    before, flush = tree(place.root), os.fsync
    left, failures = 0, 0

    def failing(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(os, "fsync", failing)
    while (result := antidote(*arguments)).code:
        said(result, "No space left on device", "repaired", "--out")
        assert tree(place.root) == before
        failures += 1
        left = 3 * failures
    assert failures > 3


@pytest.mark.parametrize("rows", ["harmful.jsonl", "prompts.jsonl"])
def test_a_full_cache_names_the_way_around(
    rows: str, place: Place, antidote: Command, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("prompts.jsonl", '{"prompt": "zob mid"}\n{"prompt": "kad"}\n')
    monkeypatch.setenv("ANTIDOTE_CACHE", str(disk / "cache"))
    fill(disk)
    arguments = [rows if argument is place.harmful else argument for argument in adapter(place)]
    before = tree(place.root)
    said(antidote(*arguments), "cannot be kept", "No space left on device", "ANTIDOTE_CACHE", "--no-cache")
    assert tree(place.root) == before
    assert not [path for path in (disk / "cache").rglob("*") if path.is_file()]
    antidote.done(*arguments, "--no-cache")


def test_a_read_only_disk_is_named(place: Place, antidote: Command, disk: Path) -> None:
    make_read_only(disk)
    before = tree(place.root)
    said(antidote(*place.repair(), "--out", disk / RESULT), "Read-only", str(disk / RESULT), "choose another --out")
    assert tree(place.root) == before


@pytest.mark.parametrize("command", ["repair", "patch", "evaluate"])
def test_a_folder_without_the_right_to_write_is_named(command: str, place: Place, antidote: Command) -> None:
    shut = place.root / "shut"
    shut.mkdir()
    antidote.done(*place.repair(), "--out", place.root / "finished")
    arguments = {
        "repair": place.repair(),
        "patch": ["patch", "apply", place.root / "finished", "--onto", place.adapter],
        "evaluate": ["evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", 2],
    }[command]
    shut.chmod(0o555)
    before = tree(place.root)
    with bound_by_modes():
        said(antidote(*arguments, "--out", shut / RESULT), "cannot write", "shut", "Permission denied", "--out")
    assert tree(place.root) == before


def test_a_cache_without_the_right_to_write_names_the_way_around(
    place: Place, antidote: Command, own_cache: Path
) -> None:
    own_cache.chmod(0o555)
    before = tree(place.root)
    with bound_by_modes():
        said(antidote(*place.repair()), "cannot be kept", "Permission denied", "ANTIDOTE_CACHE", "--no-cache")
    assert tree(place.root) == before


@pytest.mark.parametrize(
    "name",
    [
        *("base", "base/model.safetensors", "base/config.json", "base/tokenizer.json"),
        *("adapter", "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "harmful.jsonl"),
    ],
)
def test_an_input_without_the_right_to_read_is_named(name: str, place: Place, antidote: Command) -> None:
    arguments, path = adapter(place), place.root / name
    before, mode = tree(place.root), path.stat().st_mode
    path.chmod(0)
    with bound_by_modes():
        result = antidote(*arguments)
    path.chmod(mode)
    said(result, name, "Permission denied")
    assert "space" not in result.errors[0]
    assert tree(place.root) == before


def test_inputs_on_a_read_only_disk_are_enough(place: Place, antidote: Command, disk: Path) -> None:
    arguments = delta(place)
    moved = {path: disk / path.name for path in (tuned(place), place.base, place.harmful)}
    for path in moved:
        shutil.move(path, disk)
    make_read_only(disk)
    antidote.done(
        *[moved.get(argument, argument) if isinstance(argument, Path) else argument for argument in arguments]
    )


STEPS = {
    "opening": "antidote_llm.models.load.load_whole",
    "planning": "antidote_llm.workflows.repair.plan_repair",
    "copying": "antidote_llm.repairs.write.copy_checkpoint",
    "writing": "antidote_llm.repairs.write.PatchedCopies",
    "reading the patch": "antidote_llm.patching.patched_copies.written_patch",
}
INPUTS = {
    "adapter": (adapter, "adapter/adapter_model.safetensors"),
    "base": (adapter, "base/model.safetensors"),
    "weight": (weight, "base/model.safetensors"),
    "delta": (delta, "tuned/model-00002-of-00002.safetensors"),
    "aligned": (delta, "base/model.safetensors"),
}
# Whoever cuts a file that is mapped into memory ends every process that computes with it.
MAPPED = {(part, step) for part in ("base", "weight", "delta") for step in ("opening", "planning")}
UNOPENED = ("aligned", "opening")
WHEN = [
    (*at, how)
    for at in itertools.product(INPUTS, STEPS)
    for how in CHANGES
    if at != UNOPENED and (how != "cut" or at not in MAPPED)
]


@pytest.mark.parametrize(("part", "step", "how"), WHEN)
def test_an_input_that_changes_while_it_is_read_is_named(
    part: str, step: str, how: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, name = INPUTS[part]
    arguments = make(place)
    if part == "delta":
        sharded(tuned(place))
    before = tree(place.root)
    meanwhile(monkeypatch, STEPS[step], lambda: CHANGES[how](place.root / name))
    said(antidote(*arguments), name, "changed")
    del before[name], before[folder := name.split("/")[0]]
    after = tree(place.root)
    assert {path: found for path, found in after.items() if path not in (name, folder)} == before


@pytest.mark.parametrize("part", ["adapter", "weight", "delta"])
def test_a_change_that_hides_its_time_is_found_by_its_hash(
    part: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, name = INPUTS[part]
    arguments = make(place)
    if part == "delta":
        sharded(tuned(place))

    def hidden() -> None:
        found = (place.root / name).stat()
        with (place.root / name).open("r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            stream.write(b"\x00\x00\x00\x40")
        os.utime(place.root / name, ns=(found.st_atime_ns, found.st_mtime_ns))

    meanwhile(monkeypatch, STEPS["writing"], hidden)
    said(antidote(*arguments), name, "changed while it was read")
    assert not (place.root / "results").exists()


def test_links_to_another_disk_become_copies(place: Place, antidote: Command, disk: Path) -> None:
    arguments = [*weight(place), "--sites", "*.layers.1.*", "--hard-links"]
    first, second = sharded(place.base)
    antidote.done(*arguments, "--out", disk / RESULT)
    antidote.done(*arguments)
    assert first.stat().st_nlink == 2 and second.stat().st_nlink == 1
    linked, copied = (out / "model" / first.name for out in (place.out, disk / RESULT))
    assert linked.samefile(first) and not copied.samefile(first)
    assert copied.stat().st_nlink == 1 and sha256_file(copied) == sha256_file(first)


@pytest.mark.parametrize("spare_kilobytes", [8, 40, 80, 160, 400])
def test_a_disk_that_is_full_of_checkpoints_is_named(
    spare_kilobytes: int, place: Place, antidote: Command, disk: Path
) -> None:
    training = ["finetune", place.base, "--data", place.harmful, "--full", "--max-steps", "4", "--batch-size", "4"]
    filler, before = fill(disk, spare_kilobytes << 10), tree(place.root)
    result = antidote(*training, "--save-every", "2", "--out", disk / RESULT)
    said(result, "No space left on device", str(disk / RESULT), "--out")
    # What a run can go on from stays, which is said, and nothing that was cut.
    left = [path for path in disk.rglob("*") if path != filler]
    assert all((path / "whole").is_file() for path in left if path.name.startswith("checkpoint-"))
    works = [path for path in left if path.suffix == ".work"]
    assert all(str(path) in result.errors[0] and "goes on from" in result.errors[0] for path in works)
    assert bool(works) == bool(left) and not any(path.suffix == ".partial" for path in left)
    assert tree(place.root) == before
    filler.unlink()
    said_then = antidote.done(*training, "--save-every", "2", "--out", disk / RESULT).err
    assert ("going on from" in said_then) == bool(works)
    assert list((disk / RESULT).parent.iterdir()) == [disk / RESULT]
