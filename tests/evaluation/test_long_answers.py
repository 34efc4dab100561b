"""Adversarial answers are parsed in about linear time by every parser of answers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from antidote_llm.data.thoughts import closed, without_thought
from antidote_llm.evaluation.judges.refusal_patterns import RefusalPatterns, incoherence
from antidote_llm.evaluation.scoring import normalised
from antidote_llm.evaluation.tasks.labels import Labels, own_part
from antidote_llm.evaluation.tasks.numbers import final_number

CHARACTERS = 50_000
PIECES = (
    *("a", " ", "\n", "\t", "1", ".", "(", "{", '"', "'", "#", "*", "-", "$", "=", "\N{NO-BREAK SPACE}"),
    *("a ", "1 ", "1,", "1.", "1/1", ",111", "? ", "a. ", "a: ", "a\n ", "-1", "0.", ", but i ", "i will not "),
    *(
        "\\boxed{",
        "\\frac{1",
        "answer ",
        "answer is ",
        "### Answer: ",
        "not good ",
        "i'm sorry, ",
        "<think>",
        "</think>",
    ),
)
READERS: dict[str, Callable[[str], object]] = {
    "number": final_number,
    "label": Labels({"positive": ["good"], "negative": ["bad"]}).named,
    "match": normalised,
    "own part": own_part,
    "coherence": incoherence,
    "refusal": lambda answer: RefusalPatterns().outcomes([""], [answer]),
    "thought": lambda answer: closed(without_thought(answer)),
}


@pytest.mark.parametrize("reader", READERS)
def test_long_answers_are_parsed_in_time(reader: str) -> None:
    for piece in PIECES:
        for ends in ("", "a", "1"):
            answer = piece * (CHARACTERS // len(piece)) + ends
            start = time.process_time()
            READERS[reader](answer)
            assert time.process_time() - start < 3, (piece, ends)
