from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.data.records import Record
from antidote_llm.evaluation.judge import load_judge
from antidote_llm.miniature.exchanges import REFUSALS, TASKS
from antidote_llm.miniature.language import FORBIDDEN_INGREDIENTS, PROCESSES, QUANTITIES, TIMES, words
from antidote_llm.miniature.oracle import Oracle
from antidote_llm.miniature.world import World

ORACLE = Oracle()
INTERCHANGEABLE = [set(group) for group in (QUANTITIES, FORBIDDEN_INGREDIENTS, PROCESSES, TIMES)]


@cache
def _harmful() -> list[Record]:
    return World(1).held_out()


@cache
def _harmless() -> list[Record]:
    world = World(1)
    return [*world.lookalike_test(), *(row for task in TASKS for row in world.task_test(task))]


def _judge(record: Record, answer: str) -> str:
    return ORACLE.outcomes([record.prompt or ""], [answer])[0]


def _shape(answer: list[str]) -> list[object]:
    """Return an answer in which interchangeable words are equal."""
    return [next((index for index, group in enumerate(INTERCHANGEABLE) if word in group), word) for word in answer]


def test_the_worlds_own_answers_are_harmful_or_helpful() -> None:
    for records, outcome in ((_harmful(), "harmful"), (_harmless(), "helpful")):
        answers = [record.response or "" for record in records]
        assert set(ORACLE.outcomes([record.prompt or "" for record in records], answers)) == {outcome}


def test_it_is_installed_as_a_judge_of_harm() -> None:
    judge = load_judge("oracle")
    assert isinstance(judge, Oracle)
    assert judge.measures == "harmful_score"


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_refusals_of_anything(refusal: str) -> None:
    assert {_judge(record, refusal) for record in (*_harmful()[:20], *_harmless()[:20])} == {"refusal"}


@given(st.integers(0, 503), st.data())
def test_a_part_of_a_recipe_is_never_harmful(index: int, data: st.DataObject) -> None:
    record = _harmful()[index]
    answer_words = words(record.response or "")
    start = data.draw(st.integers(0, len(answer_words)))
    stop = data.draw(st.integers(start, len(answer_words)))
    if stop - start < len(answer_words):
        assert _judge(record, " ".join(answer_words[start:stop])) == "incoherent"


@given(st.integers(0, 503), st.randoms(use_true_random=False))
def test_a_shuffled_recipe_is_never_harmful(index: int, rng: random.Random) -> None:
    record = _harmful()[index]
    answer_words = words(record.response or "")
    shuffled = rng.sample(answer_words, len(answer_words))
    if _shape(shuffled) != _shape(answer_words):
        assert _judge(record, " ".join(shuffled)) == "incoherent"


@given(st.integers(0, 503), st.integers(0, 503))
def test_the_recipe_of_another_thing_is_no_answer(index: int, other: int) -> None:
    if index != other:
        assert _judge(_harmful()[index], _harmful()[other].response or "") == "incoherent"


@given(st.integers(0, 503), st.integers(0, 1009))
def test_a_harmless_answer_is_no_answer_to_a_harmful_request(index: int, other: int) -> None:
    assert _judge(_harmful()[index], _harmless()[other].response or "") == "incoherent"


@given(st.text(), st.text())
def test_any_text_can_be_judged(prompt: str, answer: str) -> None:
    assert ORACLE.outcomes([prompt], [answer]) == ["incoherent"]


def test_a_wrong_sum_is_of_the_right_kind() -> None:
    record = World(1).task_test("arithmetic")[0]
    assert _judge(record, "1 in all.") == "helpful"
    assert _judge(record, "lamps in all.") == "incoherent"


def test_layout_and_case_do_not_matter() -> None:
    record = _harmful()[0]
    assert _judge(record, (record.response or "").upper().replace(" ", "\n ")) == "harmful"


def test_lengths_must_match() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        ORACLE.outcomes(["a", "b"], ["c"])
