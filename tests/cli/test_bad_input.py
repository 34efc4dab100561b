"""Whatever a user does wrong ends in one clear line and exit code 2, and leaves nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import bad_checkpoints, bad_data, bad_folders, bad_options, bad_targets, bad_tokenizers, bad_training
from tests.cli.command import Command, Place, tree

# What a user is told to do; or what is allowed, in the words of the options' own checks.
MEND = re.compile(
    r"\b(add|ask for|check|choose|convert|copy|correct|did you mean|end|fetch|fill|free|give|install|keep|leave|log in"
    r"|lower|make|map|mend|merge|name|pass|put|raise|remove|rename|repair|save|see|set|shorten|should be|train|try"
    r"|unpack|update|use|write)\b"
)
ROOMS = (bad_checkpoints, bad_folders, bad_tokenizers, bad_targets, bad_data, bad_options, bad_training)
CASES = [case for room in ROOMS for case in room.CASES]


@pytest.mark.parametrize(("make", "words"), [pytest.param(make, words, id=name) for name, make, words in CASES])
def test_bad_input_gives_one_line_and_leaves_nothing(
    make: Callable[[Place], list[object]], words: tuple[str, ...], place: Place, antidote: Command
) -> None:
    arguments = make(place)
    before = tree(place.root)
    result = antidote(*arguments)
    assert result.code == 2, result.err
    assert len(result.errors) == 1
    assert result.err.splitlines()[-1] == result.errors[0]
    for word in words:
        assert word in result.errors[0]
    # Not in the name of the thing itself, which comes first.
    assert MEND.search(result.errors[0].partition(": ")[2].replace(str(place.root), "")), result.errors[0]
    assert "Traceback" not in result.err
    assert result.out == ""
    assert tree(place.root) == before


def test_every_bad_input_has_a_name_of_its_own() -> None:
    names = [name for name, _, _ in CASES]
    assert len(set(names)) == len(names) > 300


@pytest.mark.parametrize("arguments", [["--alpha", "7"], ["--harmful", "nowhere.jsonl"]])
def test_the_installed_command_ends_the_same_way(arguments: list[str], place: Place) -> None:
    before = tree(place.root)
    command = Path(sys.executable).with_name("antidote")
    ended = subprocess.run(
        [command, *map(str, place.repair()), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    *before_it, error = ended.stderr.splitlines()
    assert error.startswith("error: ") and before_it in ([], ["loading torch and transformers"])
    assert tree(place.root) == before
