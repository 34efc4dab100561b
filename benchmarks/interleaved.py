"""Times pieces of work in turns, so that a machine that slows down slows all of them, and holds ratios to limits."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Work:
    """What is timed, and what is done before it that is not."""

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None


def timed(works: Mapping[str, Work], repeats: int, what: str = "") -> Seconds:
    """Return the wall seconds of every piece in every round; a round more, whose times are dropped, warms up.

    Args:
        works: The pieces by name.
        repeats: Rounds that count.
        what: What is measured: printed at the start of every round.
    """
    seconds: Seconds = {name: [] for name in works}
    names = list(works)
    for index in range(repeats + 1):
        if what:
            print(f"{what}: {f'round {index} of {repeats}' if index else 'warming up'}", file=sys.stderr, flush=True)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            works[name].before()
            gc.collect()
            start = time.perf_counter()
            works[name].run()
            if index:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Seconds, above: str, below: str) -> float:
    """Return the median over rounds of the ratio of two pieces of the same round."""
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


def medians(seconds: Seconds) -> dict[str, dict[str, float]]:
    """Return the median and the extremes of every piece."""
    return {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found)}
        for name, found in seconds.items()
    }


@dataclass(frozen=True)
class Check:
    """A figure that is held to a limit."""

    name: str
    value: float
    at: Literal["most", "least"]
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the figure is on the right side."""
        return self.value <= self.limit if self.at == "most" else self.value >= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "holds": self.holds}


def checks_table(checks: Sequence[Check]) -> str:
    """Return a table of figures beside their limits."""
    lines = ["| figure | measured | limit | |", "|---|---:|---:|---|"]
    for check in checks:
        verdict = "holds" if check.holds else "**misses**"
        lines.append(f"| {check.name} | {check.value:.2f} | at {check.at} {check.limit:g} | {verdict} |")
    return "\n".join(lines) + "\n"


def load_average() -> float | None:
    """Return how many processes wanted to run during the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
