"""The measures by name: how each is called, what it is a share of, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from antidote_llm.evaluation.judge import HarmMeasure

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
