"""Only the commands that train the miniature set how processors round."""

from __future__ import annotations

import os
import sys

import pytest

from antidote_llm.cli import main as entry
from antidote_llm.io.reproducible_arithmetic import SETTINGS, round_alike, rounding


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "fixed"), [(["demo"], True), (["miniature", "build"], True), (["repair", "demo"], False), ([], False)]
)
def test_only_what_trains_the_miniature_rounds_alike(
    arguments: list[str], fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str | None] = {}

    def run(_: list[str]) -> int:
        seen.update(rounding())
        return 0

    monkeypatch.setattr(entry, "run", run)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["antidote", *arguments])
    # What the command sets is taken back at the end of this test.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(SystemExit):
        entry.main()
    assert seen == (dict(SETTINGS) if fixed else dict.fromkeys(SETTINGS))


def test_what_the_user_sets_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    for name in SETTINGS:
        if name != "MKL_CBWR":
            monkeypatch.setenv(name, SETTINGS[name])
    round_alike()
    assert rounding() == {**SETTINGS, "MKL_CBWR": "AUTO"}
