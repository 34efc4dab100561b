"""Fills the page of the commands with their own help, when the site is built."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

PLACE = re.compile(r"^<!-- help:(.*?)-->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every ``<!-- help: WORDS -->`` of a page by what ``antidote WORDS --help`` prints."""
    return PLACE.sub(lambda place: f"```text\n{help_of(place.group(1).split())}\n```", markdown)


def help_of(words: list[str]) -> str:
    """Return what a command prints when it is asked for help.

    Raises:
        RuntimeError: There is no such command.
    """
    from antidote_llm.cli.main import run

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run([*words, "--help"])
    if code != 0:
        raise RuntimeError(f"antidote {' '.join(words)} --help ended with {code}")
    return printed.getvalue().strip()
