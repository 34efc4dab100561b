"""Formatting does not make a right answer wrong, and similarity does not make a wrong one right."""

from __future__ import annotations

import pytest

from antidote_llm.choices import MatchMode
from antidote_llm.evaluation.scoring import is_correct


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "prefix"),
    [
        ("positive", "positive", True, True),
        (" Positive.\n", "positive", True, True),
        ('"positive"', "Positive!", True, True),
        ("two   words", "Two words", True, True),
        ("positive, I think", "positive", False, True),
        ("positively", "positive", False, False),
        ("The answer is positive", "positive", False, False),
        ("", "positive", False, False),
        ("4", "4.", True, True),
        ("42", "4", False, False),
        ("4.5", "4", False, False),
        ("4,000", "4", False, False),
        ("4. That is all.", "4", False, True),
        ("-4", "4", False, False),
        ("4", "-4", False, False),
        (".5", "5", False, False),
        ("don't", "don", False, False),
        ("\N{LEFT DOUBLE QUOTATION MARK}Sports\N{RIGHT DOUBLE QUOTATION MARK}", "sports", True, True),
    ],
)
def test_matching(answer: str, gold: str, exact: bool, prefix: bool) -> None:
    assert is_correct(answer, gold, "exact") is exact
    assert is_correct(answer, gold, "prefix") is prefix


@pytest.mark.parametrize("mode", ["exact", "prefix"])
def test_an_empty_gold_answer_would_match_anything(mode: MatchMode) -> None:
    with pytest.raises(ValueError):
        is_correct("anything", " . ", mode)
