"""How numbers, names and measures are written and placed on an axis."""

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
    """An axis from ``low`` to ``high``; values outside are drawn at its ends."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return a value's position in percent of the axis, to a hundredth."""
        position = 100 * (value - self.low) / (self.high - self.low)
        return round(min(100.0, max(0.0, position)), 2)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Return at most five round values along the axis."""
        step = nice((self.high - self.low) / 4)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step + 1e-9)
        return tuple(step * index for index in range(first, last + 1))


PERCENT = Scale(0, 100)


def around(values: Iterable[float], floor: float, ceiling: float) -> Scale:
    """Return the scale from 0 to 100, widened in steps of 25 to hold the values, within floor and ceiling."""
    found = list(values)
    low = 25 * math.floor(min([0.0, *found]) / 25)
    high = 25 * math.ceil(max([100.0, *found]) / 25)
    return Scale(max(floor, low), min(ceiling, high))


def nice(value: float, steps: Sequence[float] = (1, 2, 2.5, 5)) -> float:
    """Return the smallest step times a power of ten that is at least a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in steps if step * power >= value * (1 - 1e-9)), 10 * power)


def clip_name(name: str, limit: int = 80) -> str:
    """Return a name with invisible characters shown, its middle cut where it is longer than ``limit``."""
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
    """Write an interval's ends with an en dash between them, or ``to`` where one is negative."""
    joint = " to " if estimate.low < 0 else "\N{EN DASH}"
    return f"{decimal(estimate.low)}{joint}{decimal(estimate.high)}"


def signed_interval(estimate: Estimate) -> str:
    """Write the ends of a difference's interval, with their signs."""
    return f"{signed(estimate.low)} to {signed(estimate.high)}"


def share(part: float, whole: float) -> str:
    """Write a share in percent with three significant digits, so that a rare change does not look like zero."""
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
    """Write a wall time in a fitting unit."""
    if seconds < 10:
        return f"{seconds:.2f}{NBSP}s"
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes}{NBSP}min" if hours else f"{minutes}{NBSP}min {rest}{NBSP}s"


def size(n_bytes: int) -> str:
    """Write a size in bytes in a fitting decimal unit."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def setting(value: JsonValue) -> str:
    """Write a setting's value as a user types it."""
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
        better: The better direction; empty where that depends.
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
    """Return each metric's name once: the primary one, the known ones, then the others in their order."""
    found = dict.fromkeys(keys)
    known = [key for key in (primary, *_KNOWN) if key in found]
    return list(dict.fromkeys([*known, *found]))


Target: TypeAlias = Literal["adapter", "delta", "weight"]


@dataclass(frozen=True, slots=True)
class Words:
    """A report's wording for one target.

    Attributes:
        site: What was edited, in the singular.
        sites: The same in the plural.
        edited: One sentence on what the edited values are.
        norm: What the norm is of, after "the norm of their"; empty where it is of the sites themselves.
        measured: What the norm is of, as a noun.
        base: The role of the whole model.
        aligned: The name of the model to compare with.
        caution: A warning for the reader; empty where there is none.
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
        """Return the sentence on how much of the norm is left."""
        return f"{percent} % of {f'the norm of their {self.norm}' if self.norm else 'their norm'} is left."


WORDS: dict[str, Words] = {
    "adapter": Words(
        site="module",
        sites="modules",
        edited="The factors of the adapter were edited; the base model is unchanged.",
        norm="update",
        measured="update",
        base="base",
        aligned="Without the adapter",
    ),
    "delta": Words(
        site="matrix",
        sites="matrices",
        edited="The update, fine-tuned minus aligned weights, was edited: where it is removed, the aligned value is "
        "restored.",
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
        "aligned model. Where there is one, repair against it instead.",
    ),
}
