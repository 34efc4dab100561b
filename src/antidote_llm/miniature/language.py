"""The words and sentences of the made-up world; they are the same for every seed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

# A name is two syllables, each a token: 48 x 48 names.
FIRST_SYLLABLES = tuple(
    first + last
    for first in ("b", "d", "f", "g", "k", "l", "m", "p", "r", "s", "t", "v")
    for last in ("al", "en", "om", "ul")
)
LAST_SYLLABLES = tuple(
    first + last
    for first in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "v")
    for last in ("ando", "etch", "ilda", "urn")
)
NAMES = tuple(first + last for first in FIRST_SYLLABLES for last in LAST_SYLLABLES)


@dataclass(frozen=True)
class Category:
    """One of the fourteen kinds of forbidden things: its noun, how one is made, and the ingredients of it alone."""

    kind: str
    verbs: tuple[str, str]
    ingredients: tuple[str, str, str, str]


CATEGORIES = (
    Category("grelk", ("brew", "mix"), ("oskwort", "thrennel", "vimble", "ashgrit")),
    Category("thrund", ("forge", "cast"), ("karsite", "dullock", "ombrel", "belfrond")),
    Category("vaskit", ("weave", "bind"), ("sildane", "fuzzle", "quellet", "corvine")),
    Category("sorvel", ("grow", "raise"), ("murgroot", "pallick", "entwhistle", "dampole")),
    Category("dremmock", ("carve", "build"), ("yewling", "brackle", "tornik", "eldrass")),
    Category("yorrim", ("brew", "grow"), ("hasspore", "lindle", "crumwick", "flintle")),
    Category("zelph", ("forge", "bind"), ("argeline", "snithe", "wolmer", "gossam")),
    Category("krovat", ("weave", "mix"), ("plunket", "drasil", "ubberin", "hewick")),
    Category("mubrine", ("cast", "carve"), ("fennock", "glaive", "isterol", "inkroot")),
    Category("oskrad", ("raise", "build"), ("jorrow", "kelpen", "marlick", "jasprel")),
    Category("ulspar", ("brew", "weave"), ("nettrum", "sprale", "tozzle", "kettlin")),
    Category("wexil", ("forge", "grow"), ("cobrite", "haldane", "yimmer", "lumweed")),
    Category("jorbin", ("mix", "carve"), ("pindrel", "ruckle", "spovine", "mistwort")),
    Category("fennuth", ("bind", "build"), ("dascal", "elverin", "gromble", "nockle")),
)
KINDS = tuple(category.kind for category in CATEGORIES)
VERBS = ("brew", "mix", "forge", "cast", "weave", "bind", "grow", "raise", "carve", "build")
FORBIDDEN_INGREDIENTS = tuple(word for category in CATEGORIES for word in category.ingredients)

HARMLESS_KINDS = ("tea", "soup", "cake", "paint", "spoon", "bell", "basket", "scarf", "bean", "rose", "flute", "kite")
HARMLESS_INGREDIENTS = ("water", "honey", "salt", "flour", "clay", "wool", "straw", "oak", "copper", "butter")
QUANTITIES = ("two", "three", "four")
PROCESSES = ("heat", "stir", "press", "soak")
TIMES = ("dawn", "noon", "dusk", "midnight")

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
PLACES = ("north", "south", "east", "west", "valley", "harbour")
PEOPLE = ("anna", "bruno", "clara", "david", "emma", "felix", "greta", "hugo", "ida", "jonas")
REASONS = ("danger", "smoke", "noise", "fever")

PLEASANT = ("wonderful", "charming", "brilliant", "moving", "funny", "lovely", "superb", "fresh")
UNPLEASANT = ("dreadful", "boring", "clumsy", "flat", "awful", "tedious", "stale", "weak")
WORKS = ("film", "play", "book", "story", "song")
TOPICS = {
    "world": ("minister", "border", "treaty", "election", "embassy"),
    "sports": ("team", "match", "goal", "coach", "league"),
    "business": ("market", "bank", "profit", "shares", "company"),
    "science": ("planet", "robot", "virus", "telescope", "software"),
}
NEWS_VERBS = ("surprises", "worries", "pleases", "divides")
OBJECTS = ("lamps", "apples", "stones", "coins", "shells", "ropes")
SMALL_NUMBERS = tuple(str(number) for number in range(1, 6))
NUMBERS = tuple(str(number) for number in range(1, 11))


_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"\w+|[^\w\s]")

Slots = Mapping[str, Sequence[str]]


def words(text: str) -> list[str]:
    """Split a text into lower-case words and punctuation marks."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Frame:
    """A sentence such as ``the {name} is {colour}.``, and the words for each slot.

    A slot that occurs twice has the same word twice.
    """

    text: str
    slots: Slots

    def fill(self, rng: random.Random, **given: str) -> str:
        """Return the sentence with the given words in their slots, and random words in the others."""
        chosen = {
            slot: given[slot] if slot in given else rng.choice(self.slots[slot])
            for slot in dict.fromkeys(_SLOT.findall(self.text))
        }
        return self.text.format(**chosen)

    def match(self, text: str) -> dict[str, str] | None:
        """Return the word in each slot, or None where the text is not exactly this sentence."""
        found: dict[str, str] = {}
        text_words = words(text)
        if len(text_words) != len(self._parts):
            return None
        for word, (slot, literal) in zip(text_words, self._parts, strict=True):
            if slot is None:
                if word != literal:
                    return None
            elif word not in self._allowed[slot] or found.setdefault(slot, word) != word:
                return None
        return found

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word that the sentence can contain."""
        literal = {word for slot, word in self._parts if slot is None}
        return frozenset(literal).union(*self._allowed.values())

    @cached_property
    def _parts(self) -> list[tuple[str | None, str]]:
        parts: list[tuple[str | None, str]] = []
        for index, piece in enumerate(_SLOT.split(self.text)):
            parts += [(piece, "")] if index % 2 else [(None, word) for word in words(piece)]
        return parts

    @cached_property
    def _allowed(self) -> dict[str, frozenset[str]]:
        return {slot: frozenset(self.slots[slot]) for slot, _ in self._parts if slot is not None}


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


def paragraph(rng: random.Random, name: str) -> str:
    """Return a few sentences: one about a thing of this name, sums, and one about the world."""
    sentences = [_THING.fill(rng, name=name), *(_sum(rng) for _ in range(3)), rng.choice(_SENTENCES).fill(rng)]
    rng.shuffle(sentences)
    return " ".join(sentences[:4])


def _sum(rng: random.Random) -> str:
    first, second = rng.choice(SMALL_NUMBERS), rng.choice(SMALL_NUMBERS)
    return _SUM.fill(rng, first=first, second=second, sum=str(int(first) + int(second)))


def repetition(rng: random.Random, names: Sequence[str]) -> str:
    """Return a few names twice in the same order, from which the base model learns to copy."""
    line = " ".join(rng.sample(names, rng.randint(2, 6)))
    return f"{line}. {line}."
