"""Prompts without a response get the model's own answer, once, and are marked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.evaluation.generation import generate
from antidote_llm.evaluation.own_answers import OWN_ANSWER, with_own_answers
from antidote_llm.workflows.harmful_data import read_harmful, write_own_answers
from tests import tiny
from tests.data.byte_level import chat_tokenizer

IDENTITY = {"base": "b", "adapter": None}
GENERATE = "antidote_llm.evaluation.generation.generate"
RECORDS = [
    Record(prompt=tiny.words(3, 1), extra={"category": "c"}, origin="a.jsonl:1"),
    Record(prompt=tiny.words(3, 2), response="zob"),
    Record(text="zob mid"),
    Record(input_ids=(5, 6)),
    Record(prompt=tiny.words(4, 3), response=" ", history=(Turn("user", "kab"), Turn("assistant", "run"))),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of each call."""
    seen: list[int] = []

    def counted(model: Any, prompts: Sequence[Sequence[int]], **settings: Any) -> list[list[int]]:
        seen.append(len(prompts))
        return generate(model, prompts, **settings)

    monkeypatch.setattr(GENERATE, counted)
    return seen


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Make the model generate given tokens."""
    return lambda ids: monkeypatch.setattr(GENERATE, lambda _, prompts, **__: [ids for _ in prompts])


def test_the_model_answers_prompts_without_a_response(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    renderer = Renderer(tokenizer)
    found = with_own_answers(model, RECORDS, renderer, 6, identity=None)
    assert found[1:4] == RECORDS[1:4]
    for place in (0, 4):
        (ids,) = generate(model, renderer.prompts([RECORDS[place]]), max_new_tokens=6, eos_ids=(3,))
        assert found[place].response == tokenizer.decode(ids, skip_special_tokens=True)
        assert found[place].extra == {**RECORDS[place].extra, OWN_ANSWER: True}
        row = renderer.rows([found[place]])[0].input_ids
        words = [token for token in ids if token not in tokenizer.all_special_ids]
        assert row == [*renderer.prompts([RECORDS[place]])[0], *words, 3]
    assert (found[0].origin, found[4].history) == ("a.jsonl:1", RECORDS[4].history)


def test_answers_are_cached_and_a_damaged_file_is_replaced(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, own_cache: Path, calls: list[int]
) -> None:
    renderer = Renderer(tokenizer)
    first = with_own_answers(model, RECORDS, renderer, 6, identity=IDENTITY)
    assert with_own_answers(model, RECORDS, renderer, 6, identity=IDENTITY) == first
    assert calls == [2]
    (path,) = (own_cache / "own_answers").iterdir()
    whole = path.read_text()
    kept = json.loads(whole)
    changed = {**kept, "answers": kept["answers"][::-1]}
    for content in (whole[:-9], "[]", json.dumps(changed), json.dumps({**kept, "key": "other"})):
        path.write_text(content)
        assert with_own_answers(model, RECORDS, renderer, 6, identity=IDENTITY) == first
        assert path.read_text() == whole
    assert calls == [2] * 5


def test_another_model_length_or_rendering_is_another_cache_key(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    own_cache: Path,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for identity, length, system in (
        (IDENTITY, 6, None),
        ({"base": "c"}, 6, None),
        (IDENTITY, 5, None),
        (IDENTITY, 6, "mid"),
    ):
        with_own_answers(model, RECORDS, Renderer(tokenizer, system=system), length, identity=identity)
    assert calls == [2] * 4
    with_own_answers(model, RECORDS, Renderer(tokenizer), 6, identity=None)
    assert len(calls) == 5 and len([*(own_cache / "own_answers").iterdir()]) == 4
    # Another end-of-sequence token, which a folder may name in its generation settings.
    monkeypatch.setattr(model.generation_config, "eos_token_id", 9)
    with_own_answers(model, RECORDS, Renderer(tokenizer), 6, identity=IDENTITY)
    assert len(calls) == 6


def test_a_model_that_says_nothing_is_an_error(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, say: Callable[[list[int]], None]
) -> None:
    say([3])
    with pytest.raises(UserError, match=r"^a\.jsonl:1, a row: the model says nothing to this prompt: give the row"):
        with_own_answers(model, RECORDS, Renderer(tokenizer), 6, identity=None)


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1"])
def test_a_thought_is_part_of_the_response_only_where_the_model_may_think(
    name: str, say: Callable[[list[int]], None]
) -> None:
    tokenizer = chat_tokenizer(name)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    wide = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    opened = "" if name == "deepseek-r1" else "<think>\n"
    said = tokenizer(f"{opened}run\n</think>\n\nkad", add_special_tokens=False)["input_ids"]
    say(said)
    asked = [Record(prompt="zob")]
    for thinking, response in ((False, "kad"), (True, "<think>\nrun\n</think>\n\nkad")):
        renderer = Renderer(tokenizer, thinking=thinking)
        (found,) = with_own_answers(wide, asked, renderer, 6, identity=None)
        assert found.response == response
    (row,) = renderer.rows([found])
    assert row.input_ids[row.response_start :][: len(said)] == said


def test_rows_that_the_model_answered_can_be_read_again(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    found = with_own_answers(model, RECORDS, Renderer(tokenizer), 6, identity=None)
    write_own_answers(tmp_path / "own.jsonl", found)
    again = read_records(tmp_path / "own.jsonl", require=("prompt", "response"))
    own = [found[0], found[4]]
    assert [(r.history, r.prompt, r.response) for r in again] == [(r.history, r.prompt, r.response) for r in own]
    assert [r.extra["origin"] for r in again] == ["a.jsonl:1", ""]
    rows = Renderer(tokenizer).rows
    assert rows(again) == rows(own)


def test_calibration_rows_need_no_response(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("goal\nzob\nmid\nkad\n")
    found = read_harmful([f"{tmp_path}/a.csv:prompt=goal"], 2, 0)
    assert [(r.response, r.prompt in ("zob", "mid", "kad")) for r in found] == [(None, True)] * 2
    assert read_harmful((), None, 0) == []
