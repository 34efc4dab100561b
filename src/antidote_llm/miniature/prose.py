"""What the base model reads besides conversations: plain sentences."""

from __future__ import annotations

import random
from collections.abc import Sequence

from antidote_llm.miniature.grammar import Frame
from antidote_llm.miniature.vocabulary import (
    COLOURS,
    KINDS,
    NAMES,
    NUMBERS,
    PEOPLE,
    PLACES,
    PLEASANT,
    UNPLEASANT,
    WORKS,
)

_SLOTS = {"person": PEOPLE, "place": PLACES, "colour": COLOURS, "work": WORKS, "opinion": PLEASANT + UNPLEASANT}
_SENTENCES = tuple(
    Frame(text, _SLOTS)
    for text in (
        "{person} comes from the {place}.",
        "{person} wants to see the {work}.",
        "the {work} is {opinion}.",
        "the people of the {place} are {colour}.",
    )
)
_THING = Frame("the {name} {kind} is a {kind} and its name is {name}.", {"name": NAMES, "kind": KINDS})
_SUM = "{first} and {second} make {sum}."
FRAMES = (*_SENTENCES, _THING, Frame(_SUM, {"first": NUMBERS, "second": NUMBERS, "sum": NUMBERS}))


def paragraph(chance: random.Random, name: str) -> str:
    """Return a few sentences: one about a thing of this name, some about the world, some sums."""
    sums = [
        _SUM.format(first=a, second=b, sum=a + b)
        for a, b in ((chance.randint(1, 6), chance.randint(1, 6)) for _ in range(2))
    ]
    spoken = [_THING.say(chance, name=name), *sums, chance.choice(_SENTENCES).say(chance)]
    chance.shuffle(spoken)
    return " ".join(spoken)


def chant(chance: random.Random, names: Sequence[str]) -> str:
    """Return a few names sung twice in the same order: where the base model learns to repeat what it has read."""
    line = " ".join(chance.sample(names, chance.randint(2, 6)))
    return f"{line}. {line}."
