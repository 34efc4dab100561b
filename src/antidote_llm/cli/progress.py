"""How far a step is: bars on a terminal; elsewhere a line when it starts, a line a minute, and a line when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
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
from rich.text import Text

from antidote_llm.io.visible_text import visible_line

SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def bar(console: Console, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with a rate and an end."""
    with Progress(*_columns(unit), console=console) as progress:
        task = progress.add_task(visible_line(what), total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def bars(console: Console, unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar a stage."""
    with Progress(*_columns(unit), console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def moved(stage: str, step: int, steps: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(visible_line(stage), total=steps)
            progress.update(tasks[stage], completed=step)

        yield moved


@contextmanager
def lines(say: Callable[[str], None], what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Say when a step starts and ends, and once a minute how far it is."""
    step, done = _Lines(say, what, unit), 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        step.reached(done, total)

    step.reached(0, total)
    yield moved
    step.ended()


@contextmanager
def stage_lines(say: Callable[[str], None], unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Say when each stage starts and ends, and once a minute how far it is."""
    stages: dict[str, _Lines] = {}

    def moved(stage: str, step: int, steps: int) -> None:
        stages.setdefault(stage, _Lines(say, stage, unit)).reached(step, steps)

    yield moved


class _Lines:
    """One step that is told in lines."""

    def __init__(self, say: Callable[[str], None], what: str, unit: str) -> None:
        self._say, self._what, self._unit = say, what, unit
        self._began = self._said = time.monotonic()
        self._started = self._ended = False

    def ended(self) -> None:
        """Say that the step is done, once."""
        if not self._ended:
            self._ended = True
            self._say(f"{self._what}: done in {time.monotonic() - self._began:.1f} s")

    def reached(self, done: int, total: int) -> None:
        """Take how much is done, and say so where it is time."""
        now = time.monotonic()
        if not self._started:
            self._started = True
            self._say(f"{self._what}: {total:,} {self._unit}")
        if done >= total:
            self.ended()
        elif now - self._said >= SECONDS_BETWEEN_LINES and not self._ended:
            self._said = now
            rate = done / (now - self._began)
            self._say(f"{self._what}: {done:,} of {total:,} {self._unit}, {rate:.1f} a second")


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
