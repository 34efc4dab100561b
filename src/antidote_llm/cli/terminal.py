"""What a command says and where: results on standard output, everything else on standard error."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.style import Style
from rich.text import Text

from antidote_llm.io.strict_json import json_text
from antidote_llm.io.visible_text import escape_json, visible_line


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
        """Tell what goes on."""
        self._err.print(text)

    def warn(self, text: str) -> None:
        """Tell what the user should know."""
        self._err.print(Text.assemble(("warning: ", "yellow"), visible_line(text)))

    def result(self, value: Any, *shown: RenderableType) -> None:
        """Give the result: the JSON object, or what is to be shown in its place."""
        if self._silent:
            return
        if self.as_json:
            sys.stdout.write(shown_json(value, sys.stdout.encoding) + "\n")
        else:
            for renderable in shown:
                self._out.print(renderable, soft_wrap=isinstance(renderable, str))

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Show a bar with a rate and an end, and yield the function that moves it on; no bar for nothing."""
        if total == 0:
            yield lambda _: None
            return
        with Progress(*_columns(unit), console=self._err) as progress:
            task = progress.add_task(visible_line(what), total=total)
            yield lambda count: progress.advance(task, count)

    @contextmanager
    def stages(self, unit: str) -> Iterator[Callable[[str, int, int], None]]:
        """Show one bar a stage, and yield the function that takes a stage's name, its step and their number."""
        with Progress(*_columns(unit), console=self._err) as progress:
            tasks: dict[str, TaskID] = {}

            def moved(stage: str, step: int, steps: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(visible_line(stage), total=steps)
                progress.update(tasks[stage], completed=step)

            yield moved


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


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    return (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
    )


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f} {self._unit}/s" if speed else "", style="progress.data.speed")
