"""Several judges of the same answers: each has its own numbers, and disagreements are named by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.choices import Outcome
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.evaluation.answers import Answer, Opinion, flags
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import OUTCOMES, HarmMeasure, Progress, Verdict, identity_of
from antidote_llm.evaluation.judges.refusal_patterns import RefusalPatterns
from antidote_llm.evaluation.panel import Panel, disagreements, load_panel
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from tests import tiny

SETTINGS = EvaluationSettings(max_new_tokens=3)


class Fixed:
    """Gives the same verdicts whatever it is asked."""

    def __init__(self, name: str, outcomes: Sequence[Outcome], measures: HarmMeasure = "harmful_score") -> None:
        self.name, self.measures, self._outcomes = name, measures, list(outcomes)

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        return self._outcomes


class Naming(Fixed):
    """Names a category for every harmful answer, and cannot parse the last verdict."""

    def verdicts(
        self, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Verdict]:
        if progress is not None:
            progress(len(answers), len(answers))
        found = [Verdict(outcome, ("x", "y") if outcome == "harmful" else ()) for outcome in self._outcomes]
        return [*found[:-1], Verdict(self._outcomes[-1], unreadable=True)]


HARMFUL = [Record(prompt=tiny.words(3, place)) for place in range(4)]
HARMLESS = [Record(prompt=tiny.words(3, 50 + place)) for place in range(2)]
FIRST: tuple[Outcome, ...] = ("harmful", "harmful", "refusal", "helpful", "refusal", "helpful")
SECOND: tuple[Outcome, ...] = ("harmful", "refusal", "refusal", "harmful", "refusal", "refusal")
THIRD: tuple[Outcome, ...] = ("helpful", "refusal", "refusal", "helpful", "refusal", "helpful")


@pytest.fixture
def found(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Evaluation:
    panel = Panel((Naming("one", FIRST), Fixed("two", SECOND), Fixed("three", THIRD, "compliance_rate")))
    return evaluate(model, tokenizer, Suite(HARMFUL, HARMLESS), panel, SETTINGS)


def test_the_first_judge_s_numbers_are_the_evaluation_s(
    found: Evaluation, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    alone = evaluate(model, tokenizer, Suite(HARMFUL, HARMLESS), Naming("one", FIRST), SETTINGS)
    assert (found.judge, found.measures, found.metrics) == ("one", "harmful_score", alone.metrics)
    assert [answer.outcome for answer in found.answers] == list(FIRST)
    assert found.flags() == alone.flags()


def test_each_judge_has_its_own_measure(found: Evaluation) -> None:
    assert [(record.name, record.measures, record.unreadable) for record in found.judges] == [
        ("one", "harmful_score", 1),
        ("two", "harmful_score", 0),
        ("three", "compliance_rate", 0),
    ]
    one, two, three = (record.metrics for record in found.judges)
    assert one == found.metrics
    assert {name: value.value for name, value in two.items()} == {
        "harmful_score": 50,
        "helpful_rate": 0,
        "refusal_rate": 50,
        "incoherent_rate": 0,
        "over_refusal_rate": 100,
        "harmless_incoherent_rate": 0,
    }
    assert three["compliance_rate"].value == 50 and "harmful_score" not in three


def test_disagreements_are_named_by_row(found: Evaluation) -> None:
    rows = {each.judges: each.rows for each in found.disagreements}
    assert rows == {
        ("one", "two"): (("harmful", 1), ("harmful", 3), ("harmless", 1)),
        # "three" cannot distinguish harmful from helpful: both are compliance.
        ("one", "three"): (("harmful", 1),),
        ("two", "three"): (("harmless", 1),),
    }
    assert found.disagreements[0].share.value == 50
    assert found.disagreements[0].share.n == 6


def test_every_verdict_is_kept_with_its_answer(found: Evaluation, tmp_path: Path) -> None:
    assert found.answers[0].opinions == (
        Opinion("one", "harmful", ("x", "y")),
        Opinion("two", "harmful"),
        Opinion("three", "helpful"),
    )
    assert found.answers[-1].opinions[0].unreadable
    found.write(tmp_path)
    assert Evaluation.read(tmp_path) == found


def test_a_panel_has_each_judge_once(found: Evaluation) -> None:
    with pytest.raises(UserError, match="judge refusal-patterns is given twice"):
        load_panel(["refusal-patterns", "oracle", "refusal-patterns"])
    assert isinstance(load_panel(["refusal-patterns"]), RefusalPatterns)
    panel = load_panel(["oracle", "refusal-patterns"])
    assert isinstance(panel, Panel) and (panel.name, panel.measures) == ("oracle", "harmful_score")
    assert identity_of(panel) != identity_of(load_panel(["refusal-patterns", "oracle"]))


def test_progress_is_reported_by_judge(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[tuple[str, int, int]] = []
    panel = Panel((Fixed("two", SECOND), Naming("one", FIRST)))
    evaluate(
        model,
        tokenizer,
        Suite(HARMFUL, HARMLESS),
        panel,
        SETTINGS,
        judging=lambda name: lambda done, total: seen.append((name, done, total)),
    )
    assert seen == [("one", 6, 6)]


@given(st.lists(st.tuples(st.sampled_from(OUTCOMES), st.sampled_from(OUTCOMES)), min_size=1, max_size=12))
def test_a_judge_agrees_with_itself_and_disagreement_has_no_order(pairs: list[tuple[Outcome, Outcome]]) -> None:
    answers = [
        Answer("harmful", place, None, "p", None, "a", one, None, 1, (Opinion("a", one), Opinion("b", other)))
        for place, (one, other) in enumerate(pairs)
    ]
    kinds: tuple[HarmMeasure, HarmMeasure] = ("harmful_score", "compliance_rate")
    for first in kinds:
        for second in kinds:
            (here,) = disagreements(answers, {"a": first, "b": second})
            (there,) = disagreements(answers, {"b": second, "a": first})
            assert here.rows == there.rows and here.share == there.share
            assert all(pairs[place][0] != pairs[place][1] for _, place in here.rows)
    assert disagreements(answers, {"a": "harmful_score"}) == ()
    assert sum(map(sum, flags(answers, "harmful_score").values())) == len(pairs)
