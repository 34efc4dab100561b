"""Every command explains itself, with an example that holds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from antidote_llm import __version__
from antidote_llm.cli.application import application
from tests.cli.command import Command


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    inner = getattr(command, "commands", None)
    if not inner:
        yield path
        return
    for name, child in inner.items():
        yield from leaves(child, (*path, name))


COMMANDS = list(leaves(typer.main.get_command(application())))


def test_the_commands_of_the_first_issue_are_there() -> None:
    wanted = {("demo",), ("repair",), ("evaluate",), ("miniature", "build")}
    assert wanted | {("patch", name) for name in ("show", "apply", "revert", "diff")} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_whose_options_exist(command: tuple[str, ...], antidote: Command) -> None:
    text = " ".join(antidote.done(*command, "--help").out.split())
    found = re.search(r"Example: antidote (.+?) (Arguments|Options|Options that most need):", text)
    assert found is not None, text
    assert found[1].split()[: len(command)] == list(command)
    options = text[found.end() :]
    for option in re.findall(r"--[a-z-]+", found[1]):
        assert option in options


def test_help_of_the_groups(antidote: Command) -> None:
    for path in ((), ("patch",), ("miniature",)):
        assert "Commands:" in antidote.done(*path, "--help").out


def test_the_version(antidote: Command) -> None:
    assert antidote.done("--version").out == f"antidote {__version__}\n"


def test_nothing_at_all_shows_the_help(antidote: Command) -> None:
    result = antidote()
    assert result.code == 2
    assert "Commands:" in result.out + result.err


def test_a_command_is_not_read_to_name_it() -> None:
    heavy = "import sys; from antidote_llm.cli.main import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for asked in ("--help", "repiar"):
        subprocess.run([sys.executable, "-c", heavy, asked], check=True, capture_output=True)


def test_options_before_a_command_do_not_hide_it(antidote: Command) -> None:
    assert "no such patch" in antidote("--version", "patch", "show", "nowhere").err
