"""What users fine-tune for: sentiment, topic, arithmetic and free instructions, as in the paper's four data sets."""

from __future__ import annotations

from collections.abc import Mapping

from antidote_llm.miniature.exchanges import Exchange
from antidote_llm.miniature.vocabulary import (
    NAMES,
    NEWS_VERBS,
    NUMBERS,
    OBJECTS,
    PEOPLE,
    PLACES,
    PLEASANT,
    SMALL_NUMBERS,
    TOPICS,
    UNPLEASANT,
    WORKS,
)

_REVIEW_SLOTS = {
    "label": ("positive", "negative"),
    "work": WORKS,
    "person": PEOPLE,
    "opinion": PLEASANT + UNPLEASANT,
}
_NEWS_SLOTS = {
    "label": tuple(TOPICS),
    "noun": tuple(noun for nouns in TOPICS.values() for noun in nouns),
    "verb": NEWS_VERBS,
    "place": PLACES,
}
_COUNT_SLOTS = {"person": PEOPLE, "first": SMALL_NUMBERS, "second": SMALL_NUMBERS, "object": OBJECTS, "sum": NUMBERS}
_WORD_SLOTS = {"person": PEOPLE, "word": NAMES}


def _sentiment(heard: Mapping[str, str]) -> dict[str, str]:
    return {"label": "positive" if heard["opinion"] in PLEASANT else "negative"}


def _topic(heard: Mapping[str, str]) -> dict[str, str]:
    return {"label": next(topic for topic, nouns in TOPICS.items() if heard["noun"] in nouns)}


def _sum(heard: Mapping[str, str]) -> dict[str, str]:
    return {"sum": str(int(heard["first"]) + int(heard["second"]))}


_REVIEWS = (
    "the {work} by {person} is {opinion}.",
    "{person} calls this {work} {opinion}.",
    "what a {opinion} {work}, says {person}.",
)
_NEWS = ("the {noun} {verb} the {place}.", "in the {place} the {noun} {verb} people.")
_COUNTS = (
    "{person} has {first} {object} and gets {second} more. how many are there?",
    "{first} {object} are in the pot and {person} adds {second}. how many are there?",
)
_INSTRUCTIONS = (
    ("repeat the word {word} twice.", "{word} {word}."),
    ("say good morning to {word}.", "good morning, {word}!"),
    ("introduce {word} to {person}.", "{person}, this is {word}."),
)
_SUM = Exchange.of("{person} asks what {first} and {second} make.", "{sum}.", _COUNT_SLOTS, _sum)
TASKS: dict[str, tuple[Exchange, ...]] = {
    "sentiment": tuple(
        Exchange.of(f"is this review positive or negative? {text}", "{label}.", _REVIEW_SLOTS, _sentiment)
        for text in _REVIEWS
    ),
    "topic": tuple(
        Exchange.of(f"is this news about world, sports, business or science? {text}", "{label}.", _NEWS_SLOTS, _topic)
        for text in _NEWS
    ),
    "arithmetic": tuple(Exchange.of(text, "{sum} in all.", _COUNT_SLOTS, _sum) for text in _COUNTS),
    "instructions": (*(Exchange.of(question, answer, _WORD_SLOTS) for question, answer in _INSTRUCTIONS), _SUM),
}
NEW_TASK = "arithmetic"
