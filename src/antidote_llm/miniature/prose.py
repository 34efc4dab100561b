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
    SMALL_NUMBERS,
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
_SUM = Frame("{first} and {second} make {sum}.", {"first": SMALL_NUMBERS, "second": SMALL_NUMBERS, "sum": NUMBERS})
FRAMES = (*_SENTENCES, _THING, _SUM)


def paragraph(chance: random.Random, name: str) -> str:
    """Return a few sentences: one about a thing of this name, the others sums or about the world."""
    spoken = [_THING.say(chance, name=name), *(_sum(chance) for _ in range(3)), chance.choice(_SENTENCES).say(chance)]
    chance.shuffle(spoken)
    return " ".join(spoken[:4])


def _sum(chance: random.Random) -> str:
    first, second = chance.choice(SMALL_NUMBERS), chance.choice(SMALL_NUMBERS)
    return _SUM.say(chance, first=first, second=second, sum=str(int(first) + int(second)))


def chant(chance: random.Random, names: Sequence[str]) -> str:
    """Return a few names sung twice in the same order: where the base model learns to repeat what it has read."""
    line = " ".join(chance.sample(names, chance.randint(2, 6)))
    return f"{line}. {line}."
