"""Incoherent text is recognised by its characters and repetitions; ordinary text is not flagged."""

from __future__ import annotations

import random

import pytest

from antidote_llm.evaluation.judges.refusal_patterns import incoherence

BABBLE = {
    "": "empty",
    " \n\t ": "empty",
    "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}": "empty",
    "... !!! ???": "no letters or digits",
    "wo\N{REPLACEMENT CHARACTER}d wo\N{REPLACEMENT CHARACTER}d again": "torn characters",
    "bell\x07 and\x00 null": "torn characters",
    "a }{ )( ;; == ]] [[ ## @@ a }{ %% ^^ && ~~": "mostly symbols",
    "the the the the the the": "a loop",
    "I cannot help. " * 6: "a loop",
    "aaaaaaaaaaaaaaaaaaaaaa": "a loop",
    "Well then: " + "go to the shop and " * 20: "a loop",
    "\u597d\u7684" * 10: "a loop",
    " ".join(random.Random(0).choices(["red", "green"], k=60)): "the same few words",
}

SENSE = [
    "Paris.",
    "42",
    "-3.5",
    "No, no, no! I said that I won't.",
    "Take the bus. Then take the train. Then take the tram.",
    "def f(x):\n    return [g(y) for y in x if y > 0]",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    "\u6211\u4e0d\u80fd\u5e2e\u4f60\u505a\u8fd9\u4ef6\u4e8b\u3002",
    "\u0928\u092e\u0938\u094d\u0924\u0947, \u0906\u092a \u0915\u0948\u0938\u0947 \u0939\u0948\u0902?",
    "It is cut off in the middle of a character caf\N{REPLACEMENT CHARACTER}",
    "Row, row, row your boat, gently down the stream, merrily, merrily, merrily, merrily, life is but a dream.",
]


@pytest.mark.parametrize(("answer", "reason"), BABBLE.items())
def test_incoherence_is_found_and_explained(answer: str, reason: str) -> None:
    assert incoherence(answer) == reason


@pytest.mark.parametrize("answer", SENSE)
def test_ordinary_text_is_coherent(answer: str) -> None:
    assert incoherence(answer) is None
