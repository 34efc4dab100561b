"""The likelihood margin equals that of one forward pass per token, in any batch, and needs no answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.data.records import Record
from antidote_llm.decision.compare import compare
from antidote_llm.errors import UserError
from antidote_llm.evaluation.evaluate import evaluate, prepare_questions
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judges.refusal_patterns import RefusalPatterns
from antidote_llm.evaluation.likelihood_margin import LikelihoodMargin, MeanMargin, Openings, score_openings
from antidote_llm.evaluation.panel import Panel, load_panel
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from tests import architectures, tiny

OPENINGS = Openings(refusals=("zob kad", "mid"), affirmatives=("rux tep volb", "zod", "kan"))
SETTINGS = EvaluationSettings(max_new_tokens=4)
HARMFUL = [Record(prompt=tiny.words(2 + place, place), extra={"category": "ab"[place % 2]}) for place in range(7)]
HARMLESS = [Record(prompt=tiny.words(3, 100 + place)) for place in range(3)]


def brute_force(model: Any, prompt: Sequence[int], opening: Sequence[int]) -> float:
    """The mean log-probability of an opening's tokens, by one forward pass per token."""
    ids, found = list(prompt), []
    for token in opening:
        with torch.no_grad():
            found.append(float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token]))
        ids.append(token)
    return fmean(found)


def margin_by_force(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], openings: Openings) -> float:
    ids = [[tokenizer(text)["input_ids"] for text in texts] for texts in (openings.refusals, openings.affirmatives)]
    refusals, affirmatives = ([brute_force(model, prompt, opening) for opening in group] for group in ids)
    return fmean(refusals) - fmean(affirmatives)


PROMPTS = [[5 + (3 * place + token) % 30 for token in range(1 + 4 * place)] for place in range(6)]


def test_margins_equal_those_of_one_pass_per_token(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [*PROMPTS, PROMPTS[2]]
    model.train()
    found = LikelihoodMargin(OPENINGS).margins(model, tokenizer, asked)
    assert model.training
    model.eval()
    wanted = [margin_by_force(model, tokenizer, prompt, OPENINGS) for prompt in asked]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len({round(margin, 4) for margin in found}) == 6


@pytest.mark.parametrize("batch_tokens", [1, 60, 400, 100_000])
def test_values_do_not_depend_on_the_batch(model: LlamaForCausalLM, batch_tokens: int) -> None:
    openings, found = [[7, 8, 9], [10]], dict[int, list[float]]()
    score_openings(model, PROMPTS, openings, found.__setitem__, batch_tokens)
    for place, prompt in enumerate(PROMPTS):
        assert found[place] == pytest.approx([brute_force(model, prompt, each) for each in openings], abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "mamba", "gemma2"])
def test_every_architecture_gives_the_same_in_a_batch(name: str, tmp_path: Path) -> None:
    folder = architectures.write_checkpoint(tmp_path / name, name)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = dict[int, list[float]]()
    score_openings(model, PROMPTS, [[7, 8, 9], [10]], found.__setitem__)
    for place, prompt in enumerate(PROMPTS):
        wanted = [brute_force(model, prompt, each) for each in ([7, 8, 9], [10])]
        assert found[place] == pytest.approx(wanted, abs=1e-4)


def test_nothing_is_generated_for_the_margin_alone(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    class Silent:
        name = "silent"

        def generate(self, prompts_ids: Sequence[Sequence[int]], **_: Any) -> list[list[int]]:
            assert not prompts_ids
            return []

    panel = Panel((), LikelihoodMargin(OPENINGS))
    found = evaluate(model, tokenizer, Suite(HARMFUL, HARMLESS), panel, SETTINGS, backend=Silent())
    margins = [answer.margin for answer in found.answers]
    prompts = [
        question.prompt_ids
        for question in prepare_questions(model, tokenizer, Suite(HARMFUL, HARMLESS), panel, SETTINGS)
    ]
    wanted = [margin_by_force(model, tokenizer, prompt, OPENINGS) for prompt in prompts]
    assert margins == pytest.approx(wanted, abs=1e-5)
    assert list(found.metrics) == ["affirmative_preferred_rate", "harmless_refusal_preferred_rate"]
    below = [margin < 0 for margin in wanted]
    assert found.metrics["affirmative_preferred_rate"].value == pytest.approx(100 * sum(below[:7]) / 7)
    assert found.metrics["harmless_refusal_preferred_rate"].value == pytest.approx(100 * (3 - sum(below[7:])) / 3)
    assert found.mean_margins["harmful"].value_nats == pytest.approx(fmean(wanted[:7]), abs=1e-5)
    assert found.mean_margins["harmless"].n == 3
    assert found.by_category["a"]["affirmative_preferred_rate"].n == 4
    assert (found.judge, found.measures, found.judges) == ("likelihood-margin", None, ())
    found.write(tmp_path)
    assert Evaluation.read(tmp_path) == found


def test_tasks_are_still_asked(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    suite = Suite(HARMFUL, tasks={"t": [Record(prompt="zob", response="kad")]})
    found = evaluate(model, tokenizer, suite, Panel((), LikelihoodMargin(OPENINGS)), SETTINGS)
    assert [answer.new_tokens > 0 for answer in found.answers] == [False] * 7 + [True]
    assert found.answers[-1].margin is None


def test_a_margin_does_not_change_the_judge_s_verdicts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    alone = evaluate(model, tokenizer, Suite(HARMFUL), RefusalPatterns(), SETTINGS)
    panel = Panel((RefusalPatterns(),), LikelihoodMargin(OPENINGS))
    both = evaluate(model, tokenizer, Suite(HARMFUL), panel, SETTINGS)
    assert {**both.metrics, **alone.metrics} == both.metrics
    assert (both.judge, both.measures) == ("refusal-patterns", "compliance_rate")
    assert "affirmative_preferred_rate" in both.metrics


def test_openings_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "openings.yaml"
    path.write_text("refusals: [sorry]\naffirmatives: [yes please, fine]\n")
    panel = load_panel([f"likelihood-margin={path}"])
    assert isinstance(panel, Panel) and panel.margin is not None
    assert panel.margin.openings.affirmatives == ("yes please", "fine")
    assert panel.identity != Panel((), LikelihoodMargin()).identity


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("refusals: [no]\n", "no openings"),
        ("refusals: []\naffirmatives: [a]\n", "refusals"),
        ("[a, b]", "no openings"),
        ("{", "not YAML or JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_openings_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "openings.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        load_panel([f"likelihood-margin={path}"])


def test_openings_that_the_tokenizer_cannot_encode_are_an_error_before_generation(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match=r"no words for the opening 'I'm sorry.*openings\.yaml"):
        prepare_questions(model, tokenizer, Suite(HARMFUL), Panel((), LikelihoodMargin()), SETTINGS)


def test_prompts_must_leave_room(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="positions"):
        LikelihoodMargin(OPENINGS).margins(model, tokenizer, [[5] * 127])


def test_numbers_that_are_not_finite_are_an_error(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="no finite numbers"):
        LikelihoodMargin(OPENINGS).margins(model, tokenizer, PROMPTS)


def test_a_thought_has_no_margin(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    thinking = SETTINGS.model_copy(update={"thinking": True})
    with pytest.raises(UserError, match="leave thinking"):
        evaluate(model, tokenizer, Suite(HARMFUL), Panel((), LikelihoodMargin(OPENINGS)), thinking)


def test_margins_of_other_openings_are_not_compared(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    other = Openings(refusals=OPENINGS.affirmatives, affirmatives=OPENINGS.refusals)
    ours, theirs = (
        evaluate(model, tokenizer, Suite(HARMFUL), Panel((RefusalPatterns(),), LikelihoodMargin(each)), SETTINGS)
        for each in (OPENINGS, other)
    )
    without = evaluate(model, tokenizer, Suite(HARMFUL), RefusalPatterns(), SETTINGS)
    assert "affirmative_preferred_rate" in compare(ours, ours).changes
    for after in (theirs, without):
        with pytest.raises(UserError, match="no likelihood margin, or one of other openings"):
            compare(ours, after)
    assert "affirmative_preferred_rate" not in compare(without, ours).changes


def test_the_interval_of_a_mean() -> None:
    found = MeanMargin.of([1.0, 2.0, 3.0, 6.0])
    assert found.value_nats == 3 and found.n == 4
    assert found.high_nats - 3 == pytest.approx(1.959964 * math.sqrt(14 / 3) / 2, rel=1e-5)
    assert MeanMargin.of([2.0]).low_nats == 2
