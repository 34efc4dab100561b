"""The harmful prompts again, with one condition changed each time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.errors import UserError
from antidote_llm.evaluation.backends import CachingBackend, TransformersBackend
from antidote_llm.evaluation.conditions import (
    AFFIRMATIVE,
    HARDER,
    PLAIN_SYSTEM,
    all_condition_settings,
    condition_settings,
    longest_first,
)
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from tests.evaluation.test_evaluate import HARMFUL, HARMLESS, ByPrompt
from tests.evaluation.test_generation import EOS, prompts

BASE = EvaluationSettings(max_new_tokens=12, prefill="zob", system="mid", template="alpaca")


class Counting:
    """Answers as the model does, and records the prompts."""

    name = "counting"

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.asked: list[tuple[int, int]] = []
        self._inner = TransformersBackend(model)

    def generate(self, prompts_ids: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
        if prompts_ids:
            self.asked.append((len(prompts_ids), how["max_new_tokens"]))
        return self._inner.generate(prompts_ids, **how)


def test_every_condition_differs_from_the_plain_one_in_one_setting() -> None:
    found = all_condition_settings(HARDER, BASE)
    plain = found["plain"].model_dump()

    assert (plain["prefill"], plain["system"], plain["max_new_tokens"]) == (None, None, 12)
    changed = {
        name: {key: value for key, value in settings.model_dump().items() if value != plain[key]}
        for name, settings in found.items()
    }
    assert changed == {
        "plain": {},
        "prefill": {"prefill": "zob"},
        "system": {"system": "mid"},
        "tokens-30": {"max_new_tokens": 30},
        "tokens-256": {"max_new_tokens": 256},
    }
    bare = EvaluationSettings()
    assert condition_settings("prefill", bare).prefill == AFFIRMATIVE
    assert condition_settings("system", bare).system == PLAIN_SYSTEM


@pytest.mark.parametrize("name", ["prefil", "tokens-0", "tokens-", "tokens-x", "tokens-1 ", ""])
def test_unknown_conditions_are_named(name: str) -> None:
    with pytest.raises(UserError, match=f"condition {name}: .*there are plain, prefill, system and tokens-N"):
        condition_settings(name, BASE)
    if name == "prefil":
        with pytest.raises(UserError, match="did you mean prefill"):
            condition_settings(name, BASE)


@pytest.mark.parametrize("order", [(30, 4, 12), (4, 12, 30), (12, 30, 12)])
def test_short_answers_are_the_beginnings_of_long_ones(model: LlamaForCausalLM, order: tuple[int, ...]) -> None:
    asked = prompts(12)
    plain, remembering = TransformersBackend(model), CachingBackend(TransformersBackend(model))
    for limit in order:
        how: dict[str, Any] = {"max_new_tokens": limit, "eos_ids": EOS, "pad_id": 0}
        assert remembering.generate(asked, **how) == plain.generate(asked, **how)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=12), st.integers(0, 99))
def test_cached_answers_equal_generated_ones(questions: list[tuple[int, int]], seed: int) -> None:
    draw = random.Random(seed)
    said = [[draw.randrange(50) for _ in range(draw.randrange(12))] for _ in range(6)]

    class Saying:
        name = "saying"

        def generate(self, prompts_ids: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
            return [said[ids[0]][: how["max_new_tokens"]] for ids in prompts_ids]

    remembering = CachingBackend(Saying())
    for prompt, limit in questions:
        found = remembering.generate([[prompt]], max_new_tokens=limit, eos_ids=(), pad_id=0)
        assert found == [said[prompt][:limit]]


def test_other_stop_tokens_are_another_cache_key(model: LlamaForCausalLM) -> None:
    remembering, asked = CachingBackend(TransformersBackend(model)), prompts(4)
    first = remembering.generate(asked, max_new_tokens=20, eos_ids=(), pad_id=0)
    assert remembering.generate(asked, max_new_tokens=20, eos_ids=EOS, pad_id=0) != first


def test_no_token_is_generated_twice(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    counting, settings = Counting(model), EvaluationSettings(max_new_tokens=12)
    backend = CachingBackend(counting)
    names = ("plain", "tokens-5", "tokens-40")
    asked = {"": (Suite(HARMFUL, HARMLESS), settings)}
    asked |= {name: (Suite(HARMFUL), found) for name, found in all_condition_settings(names, settings).items()}

    def run(name: str, suite: Suite, how: EvaluationSettings) -> Evaluation:
        return evaluate(model, tokenizer, suite, ByPrompt(), how, backend=backend)

    found = longest_first(run, asked)
    # The harmless prompts here equal some harmful ones: their answers are cached.
    assert counting.asked == [(5, 40)]
    assert list(found) == list(asked)
    for name, (suite, how) in asked.items():
        assert found[name] == evaluate(model, tokenizer, suite, ByPrompt(), how)
    assert found["tokens-40"].answers != found["tokens-5"].answers


def test_progress_counts_cached_answers(model: LlamaForCausalLM) -> None:
    seen: list[tuple[int, int]] = []
    backend, asked = CachingBackend(TransformersBackend(model)), prompts(6)
    how: dict[str, Any] = {"max_new_tokens": 3, "eos_ids": (), "pad_id": 0}
    backend.generate(asked[:4], **how)
    backend.generate(asked, **how, progress=lambda done, total: seen.append((done, total)))

    assert seen[0] == (4, 6) and seen[-1] == (6, 6)
