"""Prompts and answers become the model's tokens, and every row holds its answer's start."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import ALPACA, Renderer, check_lengths, check_token_ids, rendered_sha256
from antidote_llm.errors import UserError
from tests import tiny
from tests.data.byte_level import BOS, EOS, byte_tokenizer, spacing_tokenizer

END = 3


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def test_the_chat_template_is_used_where_there_is_one() -> None:
    tokenizer = tiny.tokenizer()
    (row,) = Renderer(tokenizer).rows([Record(prompt="zob mid", response="kad run")])
    assert row.input_ids == ids(tokenizer, "<|user|> zob mid <|end|> <|assistant|> kad run <|end|>")
    assert row.input_ids[row.response_start :] == ids(tokenizer, "kad run <|end|>")
    assert Renderer(tokenizer).template == "chat"
    assert Renderer(byte_tokenizer()).template == "alpaca"


@settings(deadline=None)
@given(prompt=st.text("abé \n", min_size=1, max_size=8), response=st.text("abé \n", max_size=8))
@pytest.mark.parametrize("template", ["chat", "alpaca", "plain"])
@pytest.mark.parametrize("closes", [False, True])
def test_the_answer_starts_where_the_prompt_alone_ends(template: str, closes: bool, prompt: str, response: str) -> None:
    chat = f"{BOS}{{% for m in messages %}}[{{{{ m.content }}}}]{{% endfor %}}"
    tokenizer = byte_tokenizer(chat, closes=closes)
    renderer = Renderer(tokenizer, template)  # type: ignore[arg-type]
    record = Record(prompt=prompt, response=response)
    (row,), (asked,) = renderer.rows([record]), renderer.prompts([record])
    assert row.input_ids[: row.response_start] == asked
    assert asked.count(0) == 1 and asked[0] == 0
    assert row.input_ids.count(0) == 1
    answer = tokenizer.decode(row.input_ids[row.response_start :])
    assert answer == response + ("]" if template == "chat" else EOS)


def test_a_token_that_would_span_the_border_is_split() -> None:
    tokenizer = byte_tokenizer()
    (row,) = Renderer(tokenizer, "plain").rows([Record(prompt="a", response="b")])
    assert row.input_ids == [0, *ids(tokenizer, "a"), *ids(tokenizer, "b"), 1]
    assert row.response_start == 2


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("spaced", ["always", "first", "normalised"])
def test_no_space_is_added_before_an_answer_that_follows_a_prompt(spaced: str, template: Any) -> None:
    """Tokenizers in the style of sentencepiece put a space before every text, even a separate answer."""
    tokenizer = spacing_tokenizer(spaced)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ ':' if m.role == 'user' }}{% endfor %}"
    prompt = "ab:" if template == "plain" else "ab"
    (row,) = Renderer(tokenizer, template).rows([Record(prompt=prompt, response="kad")])
    # The tokenizer has one token for the colon and the answer's first letter, which must be split here.
    assert tokenizer.convert_ids_to_tokens(row.input_ids)[-5:] == [":", "k", "a", "d", EOS]
    (row,) = Renderer(tokenizer, template).rows([Record(prompt=prompt, response=" kad")])
    assert tokenizer.convert_ids_to_tokens(row.input_ids)[-6:] == [":", "\u2581", "k", "a", "d", EOS]


def test_the_alpaca_prompt_is_the_published_one() -> None:
    tokenizer = byte_tokenizer()
    (asked,) = Renderer(tokenizer, "alpaca").prompts([Record(prompt="a {b} c")])
    assert tokenizer.decode(asked[1:]) == ALPACA.replace("{prompt}", "a {b} c")
    assert ALPACA.startswith("Below is an instruction that describes a task. Write a response")


def test_text_and_token_ids_are_used_as_they_are() -> None:
    tokenizer = byte_tokenizer("never")
    text, tokens = Record(text=f"{BOS}a b"), Record(input_ids=(7, 8, 9), response_start=1)
    rows = Renderer(tokenizer).rows([text, tokens])
    assert (rows[0].input_ids, rows[0].response_start) == ([0, *ids(tokenizer, "a b")], 0)
    assert (rows[1].input_ids, rows[1].response_start) == ([7, 8, 9], 1)
    for template in ("chat", "alpaca", "plain"):
        asked = Renderer(tokenizer, template).prompts([text, tokens])
        assert asked == [[0, *ids(tokenizer, "a b")], [7]]
    assert Renderer(None).rows([tokens]) == rows[1:]


def test_a_prompt_alone_has_no_answer() -> None:
    (row,) = Renderer(tiny.tokenizer()).rows([Record(prompt="zob")])
    assert row.response_start == len(row.input_ids) == 4


@pytest.mark.parametrize(
    "expression",
    ["strftime_now('%d %b %Y')", "date_string", "strftime_now('%d') ~ ' ' ~ strftime_now('%b %Y')"],
)
def test_a_template_that_inserts_the_date_gets_a_fixed_one(expression: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = f"\n  Today: {{{{ {expression} }}}}\n{{{{ messages[0].content }}}}"
    assert Renderer(tokenizer).prompt_text(Record(prompt="zob")) == "\n  Today: 26 Jul 2024\nzob"


def test_an_answer_follows_the_prompt_even_where_the_template_puts_it_elsewhere() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% if add_generation_prompt %}<|user|> {{ messages[0].content }} <|assistant|> {% else %}other{% endif %}"
    )
    (row,) = Renderer(tokenizer).rows([Record(prompt="zob", response="mid")])
    prompt = ids(tokenizer, "<|user|> zob <|assistant|>")
    assert row.input_ids == [*prompt, *ids(tokenizer, "mid"), END]
    assert row.response_start == len(prompt)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for %}", "{{ nothing() }}"])
def test_the_error_of_a_broken_template_names_it(template: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"chat template.*template"):
        Renderer(tokenizer).prompt_text(Record(prompt="zob"))


def test_without_a_tokenizer_only_token_ids_are_rendered() -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        Renderer(None).rows([Record(prompt="zob", response="mid")])
    with pytest.raises(UserError, match="no chat template"):
        Renderer(byte_tokenizer(), "chat")


def test_token_ids_outside_the_vocabulary_and_too_long_rows_are_refused() -> None:
    records = [Record(input_ids=(1, 2)), Record(input_ids=(1, 2, 3), origin="a.jsonl:2")]
    rows = Renderer(None).rows(records)
    check_token_ids(records, rows, 4)
    check_lengths(records, rows, 3)
    check_lengths(records, rows, None)
    with pytest.raises(UserError, match=r"a\.jsonl:2: token id 3 .* vocabulary of 3"):
        check_token_ids(records, rows, 3)
    with pytest.raises(UserError, match=r"a\.jsonl:2: 3 tokens, more than the model's 2"):
        check_lengths(records, rows, 2)


def test_the_hash_of_rows_depends_on_tokens_borders_and_order() -> None:
    a, b = (Record(input_ids=(1, 2)), Record(input_ids=(1, 2), response_start=1))
    hashes = {rendered_sha256(Renderer(None).rows(rows)) for rows in ([a], [b], [a, b], [b, a], [])}
    assert len(hashes) == 5
