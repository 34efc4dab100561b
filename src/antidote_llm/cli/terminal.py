"""What a command says and where: results on standard output, everything else on standard error."""

from __future__ import annotations

import codecs
import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO

from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod, RenderableType
from rich.style import Style
from rich.text import Text

from antidote_llm.cli.progress import bar, bars, lines, stage_lines
from antidote_llm.cli.setting_names import option_of_setting
from antidote_llm.errors import shown_settings
from antidote_llm.io.strict_json import json_text
from antidote_llm.io.visible_text import escape_json, visible_line

_WIDTH = 80


class Terminal:
    """Standard output for the result, standard error for the way there.

    Text of any origin is shown as it is, each on one line: without markup, its control characters spelled out.

    Args:
        as_json: Whether the result is one JSON object.
        silent: Whether to say nothing at all, as all processes but the first do.
    """

    def __init__(self, as_json: bool = False, *, silent: bool = False) -> None:
        self.as_json, self._silent = as_json, silent
        # A pipe has no width to fold names at.
        self._out = _PlainConsole(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
        self._err = _PlainConsole(stderr=True, soft_wrap=True, quiet=silent)

    def say(self, text: str) -> None:
        """Say what goes on."""
        for line in wrapped(visible_line(shown_settings(text, option_of_setting)), sys.stderr):
            self._err.print(line)

    def warn(self, text: str) -> None:
        """Say what the user should know."""
        shown = visible_line(shown_settings(text, option_of_setting))
        first, *others = wrapped(f"warning: {shown}", sys.stderr)
        self._err.print(Text.assemble(("warning:", "yellow"), first.removeprefix("warning:")))
        for line in others:
            self._err.print(line)

    def result(self, value: Any, *shown: RenderableType) -> None:
        """Give the result: the JSON object, or what is to be shown in its place."""
        if self._silent:
            return
        if self.as_json:
            sys.stdout.write(shown_json(value, sys.stdout.encoding) + "\n")
        else:
            for renderable in shown:
                if isinstance(renderable, str):
                    for line in wrapped(visible_line(renderable), sys.stdout):
                        self._out.print(line, soft_wrap=True)
                else:
                    self._out.print(renderable)

    def progress(self, what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Show how far a step is, and yield the function that moves it on; nothing for a step of no length."""
        if total == 0 or self._silent:
            return nullcontext(lambda _: None)
        return bar(self._err, what, total, unit) if self._err.is_terminal else lines(self.say, what, total, unit)

    def stages(self, unit: str) -> AbstractContextManager[Callable[[str, int, int], None]]:
        """Show how far each stage is, and yield the function that takes a stage's name, its step and their number."""
        if self._silent:
            return nullcontext(lambda _, __, ___: None)
        return bars(self._err, unit) if self._err.is_terminal else stage_lines(self.say, unit)


def wrapped(text: str, stream: TextIO) -> list[str]:
    """Return a text in lines of whole words that fit a terminal of 80 columns; what goes elsewhere stays one line."""
    if not stream.isatty():
        return [text]
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def say_loading(terminal: Terminal) -> None:
    """Say that the libraries are being loaded, which takes seconds, where they are not yet."""
    if "torch" not in sys.modules:
        terminal.say("loading torch and transformers")


class _PlainConsole(Console):
    """Takes every string, those in tables and their titles too, for text alone."""

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        del emoji, markup, highlight, highlighter
        return Text(visible_line(text), style=style, justify=justify, overflow=overflow)


def shown_json(value: Any, encoding: str | None) -> str:
    """Return a value's JSON as it is shown: no character in it steers a terminal, or is none of the encoding's."""
    text = escape_json(json_text(value, indent=2))
    unicode = codecs.lookup(encoding or "ascii").name.startswith("utf")
    return text if unicode else json.dumps(json.loads(text), indent=2)
