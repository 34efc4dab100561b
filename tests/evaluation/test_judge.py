"""Judges are found by name, and held to what they promise."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from antidote_llm.errors import UserError
from antidote_llm.evaluation import judge as judge_module
from antidote_llm.evaluation.judge import HarmMeasure, Outcome, judge_names, load_judge, verdicts_of

HERE = "tests.evaluation.test_judge"


class Fixed:
    """Gives the same outcomes whatever it is asked."""

    name = "fixed"
    measures: HarmMeasure = "harmful_score"

    def __init__(self, outcomes: Any = ()) -> None:
        self._outcomes = outcomes

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        return list(self._outcomes)


class WithoutMeasure:
    name = "without-measure"

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        return []


class OtherMeasure(Fixed):
    measures = "toxicity"  # type: ignore[assignment]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntryPoints(
        EntryPoint(name, f"{HERE}:{target}", judge_module.JUDGE_GROUP)
        for name, target in {
            "fixed": "Fixed",
            "without-measure": "WithoutMeasure",
            "other-measure": "OtherMeasure",
            "missing": "Missing",
        }.items()
    )
    monkeypatch.setattr(judge_module, "entry_points", lambda group: entries.select(group=group))


def test_the_refusal_patterns_are_installed() -> None:
    assert "refusal-patterns" in judge_names()
    assert load_judge("refusal-patterns").measures == "compliance_rate"


@pytest.mark.usefixtures("installed")
def test_another_package_adds_a_judge_by_an_entry_point() -> None:
    assert isinstance(load_judge("fixed"), Fixed)


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown judge 'fixd': did you mean 'fixed'\? name one of fixed, missing, other"
    ):
        load_judge("fixd")
    with pytest.raises(UserError) as caught:
        load_judge("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "cannot be loaded"), ("without-measure", "is no judge"), ("other-measure", "no judge")],
)
def test_what_is_no_judge_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"judge '{name}'.*{message}"):
        load_judge(name)


@pytest.mark.parametrize(
    ("outcomes", "message"), [(["refusal"], "1 outcomes for 2"), (["refusal", "maybe"], "'maybe'")]
)
def test_outcomes_must_be_known_and_one_for_each_answer(outcomes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        verdicts_of(Fixed(outcomes), ["p", "q"], ["a", "b"])
