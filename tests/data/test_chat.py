"""Chat templates in the style of known models: borders, ends of turns, system prompts and thoughts."""

from __future__ import annotations

from typing import Any

import pytest

from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.data.thoughts import decoded, decoded_reply
from antidote_llm.errors import UserError
from tests import tiny
from tests.data.byte_level import BOS, DEEPSEEK_R1, EOS, TEMPLATES, byte_tokenizer, chat_tokenizer

EARLIER = (Turn("user", "zob"), Turn("assistant", "mid"))
SYSTEM = Turn("system", "be kind")
ENDS = {
    "chatml": "<|im_end|>\n",
    "qwen3": "<|im_end|>\n",
    "deepseek-r1": EOS,
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>\n",
    "mistral": EOS,
}
CLOSED = "<think>\n\n</think>\n\n"


def rendered(name: str, record: Record, **settings: Any) -> tuple[str, str]:
    """Return prompt and answer as texts, having checked the border between them."""
    tokenizer = chat_tokenizer(name)
    renderer = Renderer(tokenizer, **settings)
    (row,), (asked,) = renderer.rows([record]), renderer.prompts([record])
    assert row.input_ids[: row.response_start] == asked
    assert row.input_ids.count(0) == (0 if name in ("chatml", "qwen3") else 1)
    return tokenizer.decode(asked), tokenizer.decode(row.input_ids[row.response_start :])


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    ("name", "history"),
    [
        (name, history)
        for name in TEMPLATES
        for history in ((), EARLIER, (SYSTEM, *EARLIER))
        if not (name == "gemma" and SYSTEM in history)
    ],
)
def test_an_answer_is_the_response_and_the_template_s_end_of_turn(
    name: str, thinking: bool, history: tuple[Turn, ...]
) -> None:
    record = Record(prompt="brew a zorbik", response="kad ab run", history=history)
    prompt, answer = rendered(name, record, thinking=thinking)
    unthought = answer.partition("</think>")[2] if "</think>" in answer else answer
    assert unthought.strip(" \n") == ("kad ab run" + ENDS[name]).strip()
    assert answer.endswith(ENDS[name])
    for turn in history:
        assert turn.content in prompt
    assert thinking or "<think>" not in answer


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_end_of_turn_closes_an_answer(name: str) -> None:
    for thinking in (False, True):
        tokenizer = chat_tokenizer(name)
        assert tokenizer.decode(Renderer(tokenizer, thinking=thinking).closing_ids()) == ENDS[name]
    assert Renderer(byte_tokenizer()).closing_ids() == [1]


@pytest.mark.parametrize("response", ["kad", "<think>\nrun\n</think>\n\nkad", "run</think>kad"])
def test_without_thinking_a_reply_follows_a_closed_thought(response: str) -> None:
    record = Record(prompt="zob", response=response)
    assert rendered("qwen3", record) == (
        f"<|im_start|>user\nzob<|im_end|>\n<|im_start|>assistant\n{CLOSED}",
        "kad<|im_end|>\n",
    )
    assert rendered("deepseek-r1", record) == (f"{BOS}<|User|>zob<|Assistant|>{CLOSED}", f"kad{EOS}")


def test_with_thinking_the_prompt_is_the_template_s_own_and_a_thought_is_part_of_the_response() -> None:
    for response in ("<think>\nrun\n</think>\n\nkad", "run\n</think>\n\nkad"):
        record = Record(prompt="zob", response=response)
        assert rendered("deepseek-r1", record, thinking=True) == (
            f"{BOS}<|User|>zob<|Assistant|><think>\n",
            f"run\n</think>\n\nkad{EOS}",
        )
    thought = Record(prompt="zob", response="<think>\nrun\n</think>\n\nkad")
    asked = "<|im_start|>user\nzob<|im_end|>\n<|im_start|>assistant\n"
    assert rendered("qwen3", thought, thinking=True) == (asked, "<think>\nrun\n</think>\n\nkad<|im_end|>\n")


@pytest.mark.parametrize(("thinking", "answer"), [(False, "kad"), (True, "<think>run</think>kad")])
def test_a_thought_that_the_template_would_strip_is_kept(thinking: bool, answer: str) -> None:
    tokenizer = chat_tokenizer("deepseek-r1")
    tokenizer.chat_template = DEEPSEEK_R1.replace("<|Assistant|><think>\\n", "<|Assistant|>")
    record = Record(prompt="zob", response="<think>run</think>kad")
    (row,) = Renderer(tokenizer, thinking=thinking).rows([record])
    assert tokenizer.decode(row.input_ids) == f"{BOS}<|User|>zob<|Assistant|>{answer}{EOS}"


def test_with_thinking_a_response_without_a_thought_follows_a_closed_one() -> None:
    record = Record(prompt="zob", response="kad")
    assert rendered("deepseek-r1", record, thinking=True)[1] == f"\n</think>\n\nkad{EOS}"
    unclosed = Record(prompt="zob", response="<think>\nrun")
    assert rendered("deepseek-r1", unclosed, thinking=True)[1] == f"run{EOS}"


def test_the_date_is_fixed() -> None:
    prompt, _ = rendered("llama3", Record(prompt="zob", response="mid"))
    assert "Today Date: 26 Jul 2024" in prompt


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "gemma"])
def test_a_system_prompt_is_put_before_rows_that_have_none(name: str) -> None:
    assert "be kind" in rendered(name, Record(prompt="zob", response="mid"), system="be kind")[0]
    own = Record(prompt="zob", response="mid", history=(Turn("system", "be short"),))
    prompt, _ = rendered(name, own, system="be kind")
    assert "be short" in prompt and "be kind" not in prompt


def test_the_error_of_a_template_without_system_prompts_says_so() -> None:
    record = Record(prompt="zob", response="mid", history=(SYSTEM,), origin="a.jsonl:3")
    with pytest.raises(
        UserError, match=r"^a\.jsonl:3: .*takes no system prompt \(System role not supported\): leave it"
    ):
        rendered("gemma", record)
    odd = Record(prompt="zob", history=(SYSTEM, Turn("user", "mid")), origin="a.jsonl:4")
    with pytest.raises(UserError, match=r"^a\.jsonl:4: .*cannot render a prompt \(System role"):
        Renderer(chat_tokenizer("gemma")).prompts([odd])


@pytest.mark.parametrize("history", [(SYSTEM,), EARLIER])
def test_a_template_that_leaves_a_turn_out_is_refused(history: tuple[Turn, ...]) -> None:
    tokenizer = byte_tokenizer("{{ messages[-1].content }}")
    assert Renderer(tokenizer).prompt_text(Record(prompt="zob")) == "zob"
    with pytest.raises(UserError, match=r"^a\.jsonl:3: .*leaves out a (system|user) turn"):
        Renderer(tokenizer).prompts([Record(prompt="kad", history=history, origin="a.jsonl:3")])


def test_a_template_may_drop_empty_lines() -> None:
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.content.replace('\\n\\n', '\\n') }}{% endfor %}")
    record = Record(prompt="zob\n\nkad", history=(Turn("system", "mid\n\nrux"),))
    assert Renderer(tokenizer).prompt_text(record) == "mid\nruxzob\nkad"


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_without_a_chat_template_only_a_system_prompt_can_precede_a_prompt(template: Any) -> None:
    renderer = Renderer(byte_tokenizer(), template, system="be kind")
    bare = Renderer(byte_tokenizer(), template).prompt_text(Record(prompt="zob"))
    assert renderer.prompt_text(Record(prompt="zob")) == f"be kind\n\n{bare}"
    assert renderer.prompt_text(Record(text="zob")) == "zob"
    with pytest.raises(UserError, match=rf"^a\.jsonl:3: template {template} has no place for earlier turns: "):
        renderer.prompts([Record(prompt="kad", history=EARLIER, origin="a.jsonl:3")])


@pytest.mark.parametrize("special", [False, True])
def test_a_closed_thought_is_not_part_of_a_reply(special: bool) -> None:
    tokenizer = chat_tokenizer("qwen3", special_thoughts=special)
    ids = tokenizer("<think>\nrun\n</think>\n\nkad<|im_end|>", add_special_tokens=False)["input_ids"]
    assert decoded_reply(tokenizer, ids) == "kad"
    assert decoded(tokenizer, ids).endswith("run\n</think>\n\nkad")
    unclosed = tokenizer("run", add_special_tokens=False)["input_ids"]
    assert decoded_reply(tokenizer, unclosed) == "run"


def test_a_closing_tag_that_is_not_a_token_closes_a_thought_too() -> None:
    tokenizer = byte_tokenizer()
    assert decoded_reply(tokenizer, tokenizer("<think>run</think> kad")["input_ids"]) == "kad"
    assert decoded_reply(tiny.tokenizer(), tiny.tokenizer()("zob mid")["input_ids"]) == "zob mid"
