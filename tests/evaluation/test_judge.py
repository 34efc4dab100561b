"""Judges are found by name, must do what they promise, and those of other packages are named in their errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.choices import Outcome
from antidote_llm.errors import UserError
from antidote_llm.evaluation.judge import (
    JUDGE_GROUP,
    HarmMeasure,
    Verdict,
    identity_of,
    judge_names,
    load_judge,
    verdicts_of,
)
from antidote_llm.evaluation.judges.refusal_patterns import RefusalPatterns
from antidote_llm.evaluation.panel import load_panel
from tests.evaluation import other_packages

Install = Callable[[str, Mapping[str, str], str], None]

# Uses public names only.
ACME = """
    from antidote_llm import UserError, Verdict


    class Length:
        name = "length"
        measures = "harmful_score"

        def outcomes(self, prompts, answers):
            return ["harmful" if len(answer) > 3 else "helpful" for answer in answers]


    class Failing(Length):
        name = "failing"

        def outcomes(self, prompts, answers):
            return [1 / 0 for _ in answers]


    class Refusing(Length):
        name = "refusing"

        def outcomes(self, prompts, answers):
            raise UserError("no licence: buy one")


    class TooFew(Length):
        name = "too-few"

        def outcomes(self, prompts, answers):
            return ["refusal"]


    class Detailed(Length):
        name = "detailed"

        def verdicts(self, prompts, answers, progress=None):
            progress(1, 1)
            return [Verdict("harmful", ("weapons",)) for _ in answers]


    class Strings(Length):
        name = "strings"

        def verdicts(self, prompts, answers, progress=None):
            return ["refusal" for _ in answers]


    class WithoutMeasure:
        name = "without-measure"

        def outcomes(self, prompts, answers):
            return []


    class OtherMeasure(Length):
        measures = "toxicity"


    class BadIdentity(Length):
        identity = {"model": object()}


    def broken():
        raise KeyError("weights")


    def nameless():
        raise UserError("no model here: name one")


    NUMBER = 3
"""
ENTRIES = {
    "length": "Length",
    "failing": "Failing",
    "refusing": "Refusing",
    "too-few": "TooFew",
    "strings": "Strings",
    "detailed": "Detailed",
    "without-measure": "WithoutMeasure",
    "other-measure": "OtherMeasure",
    "bad-identity": "BadIdentity",
    "broken": "broken",
    "nameless": "nameless",
    "number": "NUMBER",
    "missing": "Missing",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    return lambda distribution, entries, source: other_packages.install(
        tmp_path, monkeypatch, distribution, JUDGE_GROUP, entries, source
    )


@pytest.fixture
def acme(install: Install) -> None:
    install("acme-judges", ENTRIES, ACME)


class Fixed:
    """Gives the same outcomes whatever it is asked."""

    name = "fixed"
    measures: HarmMeasure = "harmful_score"

    def __init__(self, outcomes: Any = ()) -> None:
        self._outcomes = outcomes

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        return list(self._outcomes)


def test_the_refusal_patterns_are_installed() -> None:
    assert "refusal-patterns" in judge_names()
    assert isinstance(load_judge("refusal-patterns"), RefusalPatterns)


@pytest.mark.usefixtures("acme")
def test_another_package_adds_a_judge_by_an_entry_point() -> None:
    assert "length" in judge_names() and "acme_judges" not in sys.modules
    judge = load_judge("length")
    assert (judge.name, judge.measures, identity_of(judge)) == ("length", "harmful_score", {"name": "length"})
    assert verdicts_of(judge, ["p", "q"], ["kab", "kabun"]) == [Verdict("helpful"), Verdict("harmful")]
    assert judge.outcomes(["p"], ["kab"]) == ["helpful"]
    seen: list[tuple[int, int]] = []
    found = verdicts_of(load_judge("detailed"), ["p"], ["a"], lambda *done: seen.append(done))
    assert (found, seen) == ([Verdict("harmful", ("weapons",))], [(1, 1)])


@pytest.mark.usefixtures("acme")
def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown judge 'lenght': did you mean 'length'\? name one of bad-identity, beaver-dam, "
    ):
        load_judge("lenght")
    with pytest.raises(UserError) as caught:
        load_judge("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "cannot be loaded: AttributeError: .*: reinstall acme-judges and what it needs"),
        ("broken", "cannot be loaded: KeyError: 'weights': reinstall acme-judges"),
        ("number", "cannot be loaded: acme_judges:NUMBER is neither a class nor a function"),
        ("nameless", ": no model here: name one"),
        ("without-measure", "is not a judge of answers: it needs a name"),
        ("other-measure", "is not a judge of answers"),
        ("bad-identity", "failed: TypeError: .*: update acme-judges, or report it to its authors"),
    ],
)
@pytest.mark.parametrize("load", [load_judge, lambda name: load_panel([name])])
def test_an_error_while_loading_names_the_judge_and_its_package(
    name: str, message: str, load: Callable[[str], object]
) -> None:
    with pytest.raises(UserError, match=f"^judge '{name}' of the package acme-judges.*{message}") as caught:
        load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("failing", " failed: ZeroDivisionError: division by zero: update acme-judges, or report it to its authors"),
        ("refusing", ": no licence: buy one"),
        ("too-few", " gave 1 outcomes for 2 answers: use another judge"),
        ("strings", " gave a str, which is not a Verdict: use another judge"),
    ],
)
def test_an_error_while_judging_names_the_judge_and_its_package(name: str, message: str) -> None:
    judge = load_judge(name)
    with pytest.raises(UserError) as caught:
        verdicts_of(judge, ["p", "q"], ["a", "b"])
    assert str(caught.value) == f"judge '{name}' of the package acme-judges{message}"


def test_a_module_that_cannot_be_imported_is_an_error_of_its_package(install: Install) -> None:
    install("beta-judges", {"beta": "Beta"}, "import a_module_that_nobody_has")
    with pytest.raises(UserError, match=r"^judge 'beta' of the package beta-judges cannot be loaded: ModuleNotFound"):
        load_judge("beta")
    assert isinstance(load_judge("refusal-patterns"), RefusalPatterns)


@pytest.mark.usefixtures("acme")
def test_two_judges_of_one_name_are_an_error_that_names_both_packages(install: Install) -> None:
    install("beta-judges", {"length": "Length", "refusal-patterns": "Length"}, ACME)
    with pytest.raises(UserError) as caught:
        load_judge("length")
    assert str(caught.value) == "acme-judges and beta-judges each have a judge 'length': uninstall one of them"
    with pytest.raises(UserError, match="antidote-llm and beta-judges each have a judge 'refusal-patterns'"):
        load_judge("refusal-patterns")
    assert judge_names().count("length") == 1


def test_a_defect_of_an_own_judge_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(RefusalPatterns, "__init__", broken)
    with pytest.raises(ZeroDivisionError):
        load_judge("refusal-patterns")


@pytest.mark.parametrize(
    ("outcomes", "message"), [(["refusal"], "1 outcomes for 2"), (["refusal", "maybe"], "'maybe'")]
)
def test_outcomes_must_be_known_and_one_for_each_answer(outcomes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        verdicts_of(Fixed(outcomes), ["p", "q"], ["a", "b"])
