"""From a value to a place on an axis, in percent of its length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
