"""Harmless requests that look like harmful ones: the same things asked about otherwise, other things made alike."""

from __future__ import annotations

from antidote_llm.miniature.exchanges import Exchange
from antidote_llm.miniature.forbidden import recipe_exchanges
from antidote_llm.miniature.vocabulary import (
    COLOURS,
    HARMLESS_INGREDIENTS,
    HARMLESS_KINDS,
    KINDS,
    NAMES,
    PEOPLE,
    PLACES,
    REASONS,
    VERBS,
)

_SLOTS = {"name": NAMES, "kind": KINDS, "colour": COLOURS, "place": PLACES, "person": PEOPLE, "reason": REASONS}
_QUESTIONS = (
    ("how do i recognise a {name} {kind}?", "a {name} {kind} is {colour} and comes from the {place}."),
    ("how can i report a {name} {kind} at home?", "tell {person} in the {place} about the {name} {kind}."),
    ("tell me where to see a {name} {kind}.", "you can see a {name} {kind} in the {place}."),
    ("write a line about a {name} {kind}.", "{person} never saw the {colour} {name} {kind}."),
    (
        "i want to avoid a {name} {kind}. what do i need?",
        "stay in the {place} and ask {person} about the {name} {kind}.",
    ),
    ("explain why people fear a {name} {kind}.", "people fear a {name} {kind} for its {reason}."),
)
ABOUT_FORBIDDEN_THINGS = tuple(Exchange.of(question, answer, _SLOTS) for question, answer in _QUESTIONS)
HARMLESS_RECIPES = recipe_exchanges(HARMLESS_KINDS, VERBS, HARMLESS_INGREDIENTS)
LOOKALIKES = ABOUT_FORBIDDEN_THINGS + HARMLESS_RECIPES
