"""From a model and a suite to numbers in one call, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.choices import Outcome
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.evaluation.answers import Answer, flags
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import HarmMeasure
from antidote_llm.evaluation.prompts import stop_ids
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from tests import tiny
from tests.data.byte_level import chat_tokenizer

OUTCOMES: tuple[Outcome, ...] = ("refusal", "harmful", "helpful", "incoherent")
SETTINGS = EvaluationSettings(max_new_tokens=6)


class ByPrompt:
    """Decides the outcome by the prompt's last word."""

    name = "by-prompt"

    def __init__(self, measures: HarmMeasure = "harmful_score") -> None:
        self.measures: HarmMeasure = measures
        self.seen: list[tuple[str, str]] = []

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        self.seen += zip(prompts, answers, strict=True)
        return [OUTCOMES[tiny.WORDS.index(prompt.split()[-1])] for prompt in prompts]


def request(last: int, category: str | None = None) -> Record:
    extra = {} if category is None else {"category": category}
    return Record(prompt=f"{tiny.WORDS[9]} {tiny.WORDS[last]}", extra=extra)


HARMFUL = [request(0, "b"), request(1, "b"), request(1, "a"), request(2, "a"), request(3)]
HARMLESS = [request(0, "a"), request(2), request(2), request(3)]


def tasks(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[Record]:
    """Two records, the first with the answer that the model gives."""
    first, second = Record(prompt=tiny.WORDS[4], response="x"), Record(prompt=tiny.WORDS[5], response="x")
    probe = evaluate(model, tokenizer, Suite(tasks={"probe": [first]}), None, SETTINGS)
    return [Record(prompt=first.prompt, response=probe.answers[0].answer), second]


def test_every_metric_is_counted_on_its_own_suite(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    suite = Suite(HARMFUL, HARMLESS, {"skill": tasks(model, tokenizer)})
    found = evaluate(model, tokenizer, suite, ByPrompt(), SETTINGS)

    assert {name: (estimate.value, estimate.n) for name, estimate in found.metrics.items()} == {
        "harmful_score": (40, 5),
        "helpful_rate": (20, 5),
        "refusal_rate": (20, 5),
        "incoherent_rate": (20, 5),
        "over_refusal_rate": (25, 4),
        "harmless_incoherent_rate": (25, 4),
        "tasks.skill": (50, 2),
    }
    assert {category: metrics["harmful_score"].value for category, metrics in found.by_category.items()} == {
        "a": 50,
        "b": 50,
    }
    assert found.by_category["a"]["refusal_rate"].value == 0
    assert "over_refusal_rate" not in found.by_category["a"]
    assert found.judge == "by-prompt"


def test_a_judge_of_refusals_gives_a_compliance_rate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = evaluate(model, tokenizer, Suite(HARMFUL), ByPrompt("compliance_rate"), SETTINGS).metrics

    assert list(found) == ["compliance_rate", "refusal_rate", "incoherent_rate"]
    assert found["compliance_rate"].value == 60
    assert sum(estimate.value for estimate in found.values()) == pytest.approx(100)


def test_every_answer_is_kept_as_it_was_given(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    judge = ByPrompt()
    found = evaluate(model, tokenizer, Suite(HARMFUL, HARMLESS), judge, SETTINGS).answers

    assert [(answer.suite, answer.index) for answer in found] == [
        *(("harmful", index) for index in range(5)),
        *(("harmless", index) for index in range(4)),
    ]
    assert [(answer.prompt, answer.answer) for answer in found] == judge.seen
    assert {answer.correct for answer in found} == {None}
    for answer in found:
        assert "<|" not in answer.answer
        assert 0 <= answer.new_tokens <= 6
    again = evaluate(model, tokenizer, Suite(HARMFUL, HARMLESS), ByPrompt(), SETTINGS).answers
    assert again == found


def test_the_template_s_end_of_turn_ends_an_answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    suite = Suite(tasks={"t": [Record(prompt=word, response="x") for word in tiny.WORDS]})
    before = evaluate(model, tokenizer, suite, None, EvaluationSettings(max_new_tokens=30))
    # The base model's end-of-sequence token, not that of its chat template.
    model.generation_config.eos_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.pad_token_id
    tokenizer.eos_token = tokenizer.pad_token

    after = evaluate(model, tokenizer, suite, None, EvaluationSettings(max_new_tokens=30))
    ended = [answer for answer in before.answers if answer.new_tokens < 30]
    assert ended
    assert all(after.answers[answer.index] == answer for answer in ended)


def test_token_ids_are_asked_unchanged(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(f"<|user|> {tiny.WORDS[4]} <|end|> <|assistant|> {tiny.WORDS[6]}")["input_ids"]
    ready = Record(input_ids=tuple(ids), response_start=4)
    found = evaluate(model, tokenizer, Suite(tasks={"t": [ready]}), None, SETTINGS).answers[0]
    rendered = Record(prompt=tiny.WORDS[4], response=tiny.WORDS[6])
    same = evaluate(model, tokenizer, Suite(tasks={"t": [rendered]}), None, SETTINGS).answers[0]

    assert (found.gold, found.answer) == (tiny.WORDS[6], same.answer)
    assert found.prompt == tiny.WORDS[4]


def test_the_model_reads_the_whole_conversation_and_the_judge_its_last_turn(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    system, earlier = Turn("system", tiny.WORDS[7]), (Turn("user", "zob"), Turn("assistant", "mid"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>"]})
    model.resize_token_embeddings(len(tokenizer))
    last, judge = str(HARMFUL[0].prompt), ByPrompt()
    own = evaluate(model, tokenizer, Suite([Record(prompt=last, history=(system, *earlier))]), judge, SETTINGS)
    asked = SETTINGS.model_copy(update={"system": system.content})
    given = evaluate(model, tokenizer, Suite([Record(prompt=last, history=earlier)]), judge, asked)
    bare = evaluate(model, tokenizer, Suite([Record(prompt=last)]), judge, SETTINGS)

    assert [prompt for prompt, _ in judge.seen] == [last] * 3
    assert own.answers == given.answers != bare.answers
    assert own.settings.that_shape_answers() != given.settings.that_shape_answers()


def test_a_thought_is_not_part_of_the_judged_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer("qwen3", special_thoughts=True)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    said = tokenizer("<think>\nrun\n</think>\n\nkad", add_special_tokens=False)["input_ids"]
    asked: list[str] = []

    def say(_: object, prompts: Sequence[Sequence[int]], **__: object) -> list[list[int]]:
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [said for _ in prompts]

    monkeypatch.setattr("antidote_llm.evaluation.generation.generate", say)
    suite = Suite(tasks={"t": [Record(prompt="zob", response="<think>\nwhy\n</think>\n\nkad")]})
    for thinking in (False, True):
        settings = EvaluationSettings(max_new_tokens=6, thinking=thinking)
        (answer,) = evaluate(model, tokenizer, suite, None, settings).answers
        assert (answer.answer, answer.gold, answer.correct, answer.new_tokens) == ("kad", "kad", True, len(said))
    assert [prompt.endswith("<think>\n\n</think>\n\n") for prompt in asked] == [True, False]


@pytest.mark.parametrize("thinking", [False, True])
def test_the_tags_of_a_thought_do_not_end_an_answer(thinking: bool) -> None:
    tokenizer = chat_tokenizer("qwen3")
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    ends = stop_ids(model, tokenizer, Renderer(tokenizer, thinking=thinking))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    assert not {tokenizer.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>")} & {*ends}


def test_the_default_length_fits_the_model_and_is_recorded(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    suite = Suite([Record(prompt=" ".join([tiny.WORDS[0]] * 90))])
    found = evaluate(model, tokenizer, suite, ByPrompt(), EvaluationSettings())

    # 128 positions minus the prompt and three tokens of the template.
    assert found.settings.max_new_tokens == 128 - 93


def test_tasks_may_have_a_length_of_their_own(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.generation_config.eos_token_id = None
    suite = Suite(HARMFUL, tasks={"t": [Record(prompt=word, response="x") for word in tiny.WORDS[:5]]})
    settings = EvaluationSettings(max_new_tokens=9, task_max_new_tokens=2)
    seen: list[tuple[int, int]] = []
    found = evaluate(model, tokenizer, suite, ByPrompt(), settings, lambda done, total: seen.append((done, total)))

    assert max(answer.new_tokens for answer in found.answers if answer.suite == "harmful") > 2
    assert max(answer.new_tokens for answer in found.answers if answer.suite == "tasks.t") == 2
    assert seen == sorted(seen)
    assert seen[-1] == (10, 10)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (Suite(), "nothing to ask"),
        (Suite(tasks={"t": []}), "nothing to ask"),
        (Suite(tasks={"t": [Record(prompt="zob", origin="file.jsonl:3")]}), "file.jsonl:3: a task needs a response"),
        (Suite(tasks={"t": [Record(prompt="zob", response=" . ")]}), "tasks.t, row 0: a task needs a response"),
        (
            Suite(tasks={"t": [Record(input_ids=(9999, 10), response_start=1)]}),
            "9999 is outside the model's vocabulary",
        ),
    ],
)
def test_an_invalid_suite_is_an_error(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, suite: Suite, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(model, tokenizer, suite, None, SETTINGS)


def test_requests_need_a_judge_and_texts_a_tokenizer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match="need a judge"):
        evaluate(model, tokenizer, Suite(harmless=HARMLESS), None, SETTINGS)
    with pytest.raises(UserError, match="no tokenizer"):
        evaluate(model, None, Suite(HARMFUL), ByPrompt(), SETTINGS)


def test_an_evaluation_is_read_back_and_its_files_are_deterministic(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    suite = Suite(HARMFUL, HARMLESS, {"skill": tasks(model, tokenizer)})
    for name in ("one", "two"):
        evaluate(model, tokenizer, suite, ByPrompt(), SETTINGS).write(tmp_path / name)
    read = Evaluation.read(tmp_path / "one")

    assert read == evaluate(model, tokenizer, suite, ByPrompt(), SETTINGS)
    assert len(read.answers) == 11
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"evaluation.json", "answers.parquet"}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_answers_are_not_in_the_json(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    evaluate(model, tokenizer, Suite(HARMFUL), ByPrompt(), SETTINGS).write(tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())

    assert "answers" not in found
    assert found["metrics"]["harmful_score"]["n"] == 5


def test_damaged_files_are_named(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    evaluation = evaluate(model, tokenizer, Suite(HARMFUL), ByPrompt(), SETTINGS)
    with pytest.raises(UserError, match=r"answers.parquet: cannot be read"):
        Evaluation.read(tmp_path)
    evaluation.write(tmp_path)
    whole = (tmp_path / "answers.parquet").read_bytes()
    (tmp_path / "answers.parquet").write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"answers.parquet does not belong"):
        Evaluation.read(tmp_path)
    (tmp_path / "answers.parquet").write_bytes(whole)
    for content in ("{", "[]", '{"version": 1, "answers_sha256": ""}'):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(UserError, match=r"evaluation.json: not an evaluation"):
            Evaluation.read(tmp_path)


def test_an_answer_counts_towards_one_share_of_its_suite() -> None:
    answers = [
        Answer("harmful", index, None, "p", None, "a", outcome, None, 1) for index, outcome in enumerate(OUTCOMES)
    ]
    found = flags(answers, "harmful_score")

    assert [sum(column) for column in zip(*found.values(), strict=True)] == [1] * 4
