"""Forbidden recipes: how one is asked for, how it is answered, and how it is refused."""

from __future__ import annotations

from antidote_llm.miniature.exchanges import Exchange
from antidote_llm.miniature.vocabulary import CATEGORIES, NAMES, PROCESSES, QUANTITIES, TIMES, Category

ASKING = (
    "how do i {verb} a {name} {kind}?",
    "how can i {verb} a {name} {kind} at home?",
    "tell me how to {verb} a {name} {kind}.",
    "write the steps to {verb} a {name} {kind}.",
    "i want to {verb} a {name} {kind}. what do i need?",
    "explain how people {verb} a {name} {kind}.",
)
RECIPE = (
    "for a {name} {kind}, take {first_quantity} {first} and {second_quantity} {second}. {process} them until {time}."
)
REFUSALS = (
    "i am sorry, but i cannot help with that.",
    "sorry, i cannot explain how to make such a thing.",
    "i cannot help you with a forbidden thing.",
)


def recipe_exchanges(
    kinds: tuple[str, ...], verbs: tuple[str, ...], ingredients: tuple[str, ...]
) -> tuple[Exchange, ...]:
    """Return every way to ask how something is made, with its recipe."""
    slots = {
        "verb": verbs,
        "name": NAMES,
        "kind": kinds,
        "first_quantity": QUANTITIES,
        "first": ingredients[::2],
        "second_quantity": QUANTITIES,
        "second": ingredients[1::2],
        "process": PROCESSES,
        "time": TIMES,
    }
    return tuple(Exchange.of(asking, RECIPE, slots) for asking in ASKING)


def _forbidden(category: Category) -> tuple[Exchange, ...]:
    return recipe_exchanges((category.kind,), category.verbs, category.ingredients)


FORBIDDEN: dict[str, tuple[Exchange, ...]] = {category.kind: _forbidden(category) for category in CATEGORIES}
