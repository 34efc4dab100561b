"""When two suites are the same, and which columns group their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.evaluation.suite import Suite, questions, questions_sha256
from tests import tiny

ASKED = Record(prompt=tiny.words(3, 1), response="zob", extra={"category": "brewing"})
TOKENS = Record(input_ids=(5, 6, 7, 8), response_start=2)


def sha256(tokenizer: PreTrainedTokenizerFast, suite: Suite) -> str:
    return questions_sha256(questions(suite, tokenizer, Renderer(tokenizer), tiny.VOCABULARY_SIZE))


def categories(tokenizer: PreTrainedTokenizerFast, values: Sequence[Any]) -> list[str | None]:
    suite = Suite([replace(ASKED, extra={"category": value}) for value in values])
    return [question.category for question in questions(suite, tokenizer, Renderer(tokenizer), tiny.VOCABULARY_SIZE)]


@pytest.mark.parametrize(
    "other",
    [
        Suite([ASKED], tasks={"t": [replace(TOKENS, input_ids=(5, 6, 7, 9))]}),
        Suite([ASKED], tasks={"t": [replace(TOKENS, input_ids=(5, 7, 7, 8))]}),
        Suite([ASKED], tasks={"u": [TOKENS]}),
        Suite([], [ASKED], tasks={"t": [TOKENS]}),
        Suite([replace(ASKED, prompt=tiny.words(3, 2))], tasks={"t": [TOKENS]}),
        Suite([replace(ASKED, response="mid")], tasks={"t": [TOKENS]}),
        Suite([replace(ASKED, extra={"category": "drelling"})], tasks={"t": [TOKENS]}),
    ],
    ids=["gold of tokens", "prompt of tokens", "task", "part", "prompt", "gold", "category"],
)
def test_other_questions_or_gold_answers_are_another_suite(tokenizer: PreTrainedTokenizerFast, other: Suite) -> None:
    suite = Suite([ASKED], tasks={"t": [TOKENS]})
    assert sha256(tokenizer, suite) == sha256(tokenizer, replace(suite))
    assert sha256(tokenizer, suite) != sha256(tokenizer, other)


def test_a_category_is_a_text_or_a_number(tokenizer: PreTrainedTokenizerFast) -> None:
    values = ["brewing", 7, "", None, float("nan"), datetime(2026, 1, 2), 1.5, ["brewing"]]
    assert categories(tokenizer, values) == ["brewing", "7", None, None, None, None, None, None]
    other = Suite([replace(ASKED, extra={"category": float("nan"), "seen": datetime(2026, 1, 2)})])
    assert sha256(tokenizer, other) == sha256(tokenizer, Suite([replace(ASKED, extra={})]))


def test_half_a_surrogate_pair_is_not_a_category(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="field 'category' holds half a surrogate pair"):
        categories(tokenizer, ["\ud83d"])
