"""A prefill begins the answer, tokenised as the model would have generated it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.generation import generate
from antidote_llm.evaluation.judges.refusal_patterns import RefusalPatterns
from antidote_llm.evaluation.judging import judge_answers
from antidote_llm.evaluation.prompts import opening_ids, stop_ids
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Question, Suite
from tests import tiny
from tests.data.byte_level import EOS, TEMPLATES, byte_tokenizer, chat_tokenizer
from tests.evaluation.test_evaluate import HARMFUL, HARMLESS, SETTINGS, ByPrompt

OPENING = "Zob, mid is"
PREFILLED = SETTINGS.model_copy(update={"prefill": f"{tiny.WORDS[12]} {tiny.WORDS[13]}"})


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    ("name", "system"),
    [(name, system) for name in TEMPLATES for system in (None, "vol") if system is None or name != "gemma"],
)
def test_prompt_and_prefill_are_a_prefix_of_the_whole_row(name: str, system: str | None, thinking: bool) -> None:
    renderer = Renderer(chat_tokenizer(name), system=system, thinking=thinking)
    record = Record(prompt="kab run", response=f"{OPENING} ted")
    (prompt,), (opening,) = renderer.prompts([record]), opening_ids(renderer, [record], OPENING)

    assert renderer.rows([record])[0].input_ids[: len(prompt) + len(opening)] == prompt + opening
    assert renderer.tokenizer.decode(opening).endswith(OPENING)


@pytest.mark.parametrize(
    ("template", "system", "record"),
    [
        ("alpaca", None, Record(prompt="kab")),
        ("plain", "vol", Record(prompt="kab")),
        ("chatml", "vol", Record(prompt="kab")),
        ("chatml", "vol", Record(prompt="kab", history=(Turn("system", "run"), Turn("user", "mid")))),
        ("auto", None, Record(text="kab\n")),
        ("auto", None, Record(input_ids=(5, 6))),
    ],
)
def test_only_the_prefill_follows_the_prompt(template: str, system: str | None, record: Record) -> None:
    chat = template == "chatml"
    tokenizer = chat_tokenizer("chatml") if chat else byte_tokenizer(closes=True)
    renderer = Renderer(tokenizer, "chat" if chat else template, system=system)  # type: ignore[arg-type]
    (opening,) = opening_ids(renderer, [record], OPENING)

    assert tokenizer.decode(opening) == OPENING
    assert tokenizer.convert_tokens_to_ids(EOS) not in opening


def test_no_token_crosses_the_boundary_of_prompt_and_prefill() -> None:
    renderer = Renderer(byte_tokenizer(), "plain")
    record = Record(prompt="za")
    (opening,) = opening_ids(renderer, [record], "bab")

    assert renderer.tokenizer.convert_ids_to_tokens(opening) == ["b", "ab"]
    assert renderer.tokenizer.decode(renderer.prompts([record])[0] + opening, skip_special_tokens=True) == "zabab"


@settings(max_examples=40, deadline=None)
@given(st.text("ab \nz", min_size=1).filter(str.strip), st.sampled_from(["chatml", "mistral", "llama3", "qwen3"]))
def test_any_prefill_is_encoded_completely(opening: str, name: str) -> None:
    said = str(EvaluationSettings(prefill=opening).prefill)
    renderer = Renderer(chat_tokenizer(name))
    (ids,) = opening_ids(renderer, [Record(prompt="kab")], said)

    assert renderer.tokenizer.decode(ids).lstrip(" ") == said == opening.strip()


def test_the_model_continues_the_prefill_and_the_judge_sees_both(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    judge, opening = ByPrompt(), str(PREFILLED.prefill)
    found = evaluate(model, tokenizer, Suite(HARMFUL), judge, PREFILLED)
    renderer = Renderer(tokenizer)
    words = tokenizer(opening)["input_ids"]
    expected = generate(
        model,
        [ids + words for ids in renderer.prompts(HARMFUL)],
        max_new_tokens=6,
        eos_ids=stop_ids(model, tokenizer, renderer),
    )

    assert [answer.answer for answer in found.answers] == [
        f"{opening} {tokenizer.decode(ids, skip_special_tokens=True)}".strip() for ids in expected
    ]
    assert [answer.new_tokens for answer in found.answers] == [len(ids) for ids in expected]
    assert [said for _, said in judge.seen] == [answer.answer for answer in found.answers]
    assert found.settings.prefill == opening


def test_harmless_prompts_and_tasks_have_no_prefill(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    suite = Suite(HARMFUL, HARMLESS, {"t": [Record(prompt=tiny.WORDS[4], response="x")]})
    plain = evaluate(model, tokenizer, suite, ByPrompt(), SETTINGS).answers
    found = evaluate(model, tokenizer, suite, ByPrompt(), PREFILLED).answers

    assert found[5:] == plain[5:]
    assert all(now != before for now, before in zip(found[:5], plain[:5], strict=True))


def test_the_prefill_counts_towards_the_positions(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = EvaluationSettings(prefill=" ".join([tiny.WORDS[0]] * 100), max_new_tokens=30)
    with pytest.raises(UserError, match="more than the model's 128 positions"):
        evaluate(model, tokenizer, Suite(HARMFUL), ByPrompt(), asked)
    with pytest.raises(ValueError, match="name an opening of at least a word"):
        EvaluationSettings(prefill=" \n")


@pytest.mark.parametrize(
    ("said", "refused"), [("I'm sorry, but I can't help with that.", True), (": first take a zob and go on.", False)]
)
def test_a_refusal_after_the_prefill_is_recognised(said: str, refused: bool) -> None:
    settings, asked_of = EvaluationSettings(prefill="Sure, here is"), Suite(HARMFUL[:1], HARMLESS[:1])
    asked = [Question(suite, 0, None, tiny.WORDS[2], None, [1]) for suite in ("harmful", "harmless")]
    texts = [f"Sure, here is {said}", "Sure, here is I'm sorry, but I can't help with that."]
    judge = ByPrompt()
    found = judge_answers(asked_of, asked, texts, [9, 9], RefusalPatterns(), settings)
    judge_answers(asked_of, asked, texts, [9, 9], judge, settings)

    assert found.metrics["refusal_rate"].value == 100 * refused
    assert found.metrics["over_refusal_rate"].value == 0
    assert [answer.answer for answer in found.answers] == texts == [text for _, text in judge.seen]
