"""From a value to a place on an axis, in percent of its length."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import JsonValue

from antidote_llm.evaluation.judge import HarmMeasure
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.io.visible_text import cut_middle, visible


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from ``low`` to ``high``; what lies outside is drawn at its end."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place of a value, between 0 and 100, to a hundredth."""
        place = 100 * (value - self.low) / (self.high - self.low)
        return round(min(100.0, max(0.0, place)), 2)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Return five or fewer round values along the axis."""
        step = nice((self.high - self.low) / 4)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step + 1e-9)
        return tuple(step * index for index in range(first, last + 1))


PERCENT = Scale(0, 100)


def around(values: Iterable[float], floor: float, ceiling: float) -> Scale:
    """Return 0 to 100, widened in steps of 25 to hold the values, but no further than floor and ceiling."""
    found = list(values)
    low = 25 * math.floor(min([0.0, *found]) / 25)
    high = 25 * math.ceil(max([100.0, *found]) / 25)
    return Scale(max(floor, low), min(ceiling, high))


def nice(value: float, steps: Sequence[float] = (1, 2, 2.5, 5)) -> float:
    """Return the smallest of the steps times a power of ten that is not less than a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in steps if step * power >= value * (1 - 1e-9)), 10 * power)


def clip_name(name: str, limit: int = 80) -> str:
    """Return a name that is safe to look at, its middle cut where it is longer than ``limit`` characters."""
    return cut_middle(visible(name), limit)


def clip(text: str, limit: int) -> tuple[str, int]:
    """Return the first ``limit`` characters and how many were left out."""
    return text[:limit], max(0, len(text) - limit)


NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def decimal(value: float, digits: int = 1) -> str:
    """Write a number with a fixed count of decimals; minus zero is zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def signed(value: float) -> str:
    """Write a difference with its sign."""
    text = decimal(value)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def interval(estimate: Estimate) -> str:
    """Write the ends of an interval: an en dash between plain numbers, ``to`` where one is negative."""
    joint = " to " if estimate.low < 0 else "\N{EN DASH}"
    return f"{decimal(estimate.low)}{joint}{decimal(estimate.high)}"


def signed_interval(estimate: Estimate) -> str:
    """Write the ends of a difference's interval, with their signs."""
    return f"{signed(estimate.low)} to {signed(estimate.high)}"


def share(part: float, whole: float) -> str:
    """Write a share in percent with three significant digits, so that a rare change does not read as none."""
    if whole == 0:
        return "\N{EM DASH}"
    percent = 100 * part / whole
    if percent == 0:
        return "0"
    digits = min(6, max(1, 1 - math.floor(math.log10(percent))))
    text = f"{percent:.{digits}f}"
    return "100" if part == whole else text


def norm(value: float) -> str:
    """Write a norm with three significant digits, a large one as a whole number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def count(value: int) -> str:
    """Write a whole number with a comma between thousands."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """Write a wall time in its natural unit."""
    if seconds < 10:
        return f"{seconds:.2f}{NBSP}s"
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest}{NBSP}s"


def size(n_bytes: int) -> str:
    """Write a size in bytes in its natural decimal unit."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def setting(value: JsonValue) -> str:
    """Write a setting as a user would type it."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


Better = Literal["lower", "higher", ""]


@dataclass(frozen=True, slots=True)
class Measure:
    """How a measure is presented.

    Attributes:
        key: Its name in the data.
        label: Its name on the page.
        of: What it is a share of.
        better: The direction that is better; empty where it depends.
    """

    key: str
    label: str
    of: str
    better: Better


_KNOWN = {
    measure.key: measure
    for measure in (
        Measure("harmful_score", "Harmful score", "Harmful requests", "lower"),
        Measure("compliance_rate", "Compliance", "Harmful requests", "lower"),
        Measure("refusal_rate", "Refuses", "Harmful requests", ""),
        Measure("helpful_rate", "Harmless help", "Harmful requests", ""),
        Measure("incoherent_rate", "Incoherent", "Harmful requests", "lower"),
        Measure("over_refusal_rate", "Over-refusal", "Harmless look-alikes", "lower"),
        Measure("harmless_incoherent_rate", "Incoherent", "Harmless look-alikes", "lower"),
    )
}


def measure(key: str) -> Measure:
    """Return how a metric is presented; an unknown one by its own name, without a direction."""
    return _KNOWN.get(key) or Measure(key, key.replace("_", " ").capitalize(), "Other measure", "")


def task_measure(name: str) -> Measure:
    """Return how a task's accuracy is presented."""
    return Measure(name, name, "User's task, accuracy", "higher")


def gain_measure(name: str) -> Measure:
    """Return how a task's gain kept is presented."""
    return Measure(name, name, "Gain of the fine-tune kept", "higher")


def in_order(keys: Iterable[str], primary: HarmMeasure) -> list[str]:
    """Return the metrics' names once each: the primary one, the known ones, then the others as they came."""
    found = dict.fromkeys(keys)
    known = [key for key in (primary, *_KNOWN) if key in found]
    return list(dict.fromkeys([*known, *found]))


Target: TypeAlias = Literal["adapter", "delta", "weight"]


@dataclass(frozen=True, slots=True)
class Words:
    """How a report speaks of one target.

    Attributes:
        site: What was edited, in the singular.
        sites: The same in the plural.
        edited: One sentence on what the edited values are.
        norm: What the norm is taken of, after "the norm of their"; empty where it is of the sites themselves.
        measured: What the norm is taken of, as a noun of its own.
        base: What the whole model served as.
        aligned: The name of the model to compare with.
        caution: What a reader must keep in mind; empty where nothing.
    """

    site: str
    sites: str
    edited: str
    norm: str
    measured: str
    base: str
    aligned: str
    caution: str = ""

    def count(self, number: int) -> str:
        """Write a number of sites."""
        return f"{number:,} {self.site if number == 1 else self.sites}"

    def norm_left(self, percent: str) -> str:
        """Say how much of the norm is left."""
        return f"{percent} % of {f'the norm of their {self.norm}' if self.norm else 'their norm'} is left."


WORDS: dict[str, Words] = {
    "adapter": Words(
        site="module",
        sites="modules",
        edited="The factors of the adapter were edited; the model below it stays as it is.",
        norm="update",
        measured="update",
        base="base",
        aligned="Without the adapter",
    ),
    "delta": Words(
        site="matrix",
        sites="matrices",
        edited="The update, fine-tuned minus aligned weights, was edited: where it is taken away, the aligned value "
        "stands again.",
        norm="update",
        measured="update",
        base="fine-tuned model",
        aligned="The aligned model",
    ),
    "weight": Words(
        site="matrix",
        sites="matrices",
        edited="The weights themselves were edited, pre-trained ones included.",
        norm="",
        measured="weights",
        base="fine-tuned model",
        aligned="The aligned model",
        caution="The bare weights were zeroed: zeroing pre-trained weights costs far more than going back to an "
        "aligned model. Where there is one, name it with --aligned.",
    ),
}
