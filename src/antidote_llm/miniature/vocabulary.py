"""The words of the made-up world; they are the same for every seed."""

from __future__ import annotations

from dataclasses import dataclass

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
    """One of the fourteen kinds of forbidden things.

    Attributes:
        kind: What such a thing is called.
        verbs: How one is made.
        ingredients: What goes into one and into nothing else.
    """

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
