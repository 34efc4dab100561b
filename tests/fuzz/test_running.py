"""The fuzzer notices what it is made to notice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import kinds, running
from tests.fuzz.case import Case, Inputs, differing_file
from tests.fuzz.mutations import damage_of, damaged_bytes

Command = Callable[[list[str]], int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one sound input is, and a kind of case that leaves it as it is."""
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "harmful.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)

    def kind(_: Random, given: Inputs) -> Case:
        return Case("nothing", ["zorbik"], given.root / "out", lambda: "a wrong result")

    monkeypatch.setattr(kinds, "KINDS", {"made up": kind})
    return tmp_path


def _says(text: str, code: int) -> Command:
    def run(_: list[str]) -> int:
        sys.stderr.write(text)
        return code

    return run


def _writes(name: str, code: int) -> Command:
    def run(_: list[str]) -> int:
        Path(name).write_text("zorbik")
        return _says("error: no\n", code)([])

    return run


def _breaks(_: list[str]) -> int:
    raise RuntimeError("zorbik")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (_says("error: no\n", 2), ""),
        (_says("internal error: no\n", 3), "exit code 3"),
        (_says("error: \x1b[0m\n", 2), "wrote U+001B"),
        (_says("error: no\nerror: no\n", 2), "2 error lines"),
        (_says("", 2), "0 error lines"),
        (_says(f"error: {'n' * 1000}\n", 2), "an error line of 1007 characters"),
        (_says("", 0), "a wrong result"),
        (_writes("out", 2), "left out"),
        (_writes("harmful.jsonl", 2), "changed its input harmful.jsonl"),
        (_writes("harmful.jsonl", 0), "changed its input harmful.jsonl"),
        (_breaks, "RuntimeError: zorbik"),
    ],
)
def test_every_fault_is_noticed(command: Command, problem: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antidote_llm.cli.main.run", command)
    found = running.run_case("0:made up:0", folder)
    assert problem in found.problem and bool(problem) == bool(found.problem)


def test_the_same_seed_damages_alike_and_another_otherwise(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4
    assert len({damaged_bytes(Random(7), data) for _ in range(3)}) == 1
    assert len({damaged_bytes(Random(seed), data) for seed in range(50)}) > 40
    assert all(damage_of(name)(Random(3), b'{"a": [1, 2]}') != b"" for name in ("a.json", "a.txt"))
    first, second = tmp_path / "first", tmp_path / "second"
    for place, text in ((first, "zob"), (second, "mid")):
        place.mkdir()
        (place / "a").write_text(text)
    assert differing_file(first, second) == "a"
    assert differing_file(first, second, left_out=("a",)) is None
