"""The final number of a worked solution, whatever the formatting."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.evaluation.tasks.numbers import final_number, is_correct

GOLD = "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs and makes 9 * 2 = $<<9*2=18>>18.\n#### 18"
NARROW = "\N{NARROW NO-BREAK SPACE}"


@pytest.mark.parametrize(
    "answer",
    [
        "18",
        "18.",
        "18.00",
        "$18",
        "$ 18.00.",
        "+18",
        "\\$18",
        "18 dollars",
        "18%",
        "**18**",
        "(18)",
        "x=18",
        "#### 18",
        "####18.",
        "#### **18**",
        "#### $18 a day\nThat is for 7 days.",
        "#### 18\n\n### Instruction:\nNext?\n\n### Response:\n#### 5",
        "18\nQuestion: and 4?\nAnswer: 4",
        "Step by step, 9 eggs.\n\n### Answer:\n18",
        "The answer is 18.",
        "The final answer is: $18.00. She works 7 days.",
        "So the answer is 9 * 2 = 18 dollars for 9 eggs.",
        "\\boxed{18} eggs of 20",
        "She has 9 eggs. 9 * 2 = 18",
        "36/2",
        "\\frac{36}{2}",
        "\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT EIGHT}",
        GOLD,
    ],
)
def test_ways_to_write_eighteen(answer: str) -> None:
    assert is_correct(answer, GOLD)


@pytest.mark.parametrize(
    "answer", ["", "eighteen", "-18", "180", "1.8", "18 for 2 days", "A18", "#### 81", "9 + 9", "18/5"]
)
def test_what_is_not_eighteen(answer: str) -> None:
    assert not is_correct(answer, GOLD)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("$1,234.", 1234),
        ("1,234,567.50", Fraction("1234567.5")),
        ("1{,}234", 1234),
        (f"1{NARROW}234", 1234),
        ("-5", -5),
        ("\N{MINUS SIGN}7", -7),
        ("-$5.50", Fraction("-5.5")),
        ("costs $-5", -5),
        ("10-5", 5),
        (".5", Fraction(1, 2)),
        ("1 1/2", Fraction(3, 2)),
        ("5\N{VULGAR FRACTION ONE HALF}", Fraction(11, 2)),
        ("3/4 of a cup", Fraction(3, 4)),
        ("1/0", 0),
        ("1, 2, 3", 3),
        ("1" * 5000, None),
        ("no number", None),
    ],
)
def test_numbers(answer: str, number: int | Fraction | None) -> None:
    assert final_number(answer) == number


@given(
    value=st.integers(-(10**12), 10**12),
    dress=st.sampled_from(
        ["{}", "{}.", "**{}**", "#### {}", "The answer is {}.", "so 2 of them make {}", "\\boxed{{{}}}"]
    ),
    form=st.sampled_from(["{}", "{:,}", "{}.0", "{:,}.00"]),
)
def test_whole_numbers_are_read_in_every_format(value: int, dress: str, form: str) -> None:
    assert final_number(dress.format(form.format(value))) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**6), max_value=10**6))
def test_decimals_are_exact(value: object) -> None:
    assert final_number(f"It is ${value} in all.") == Fraction(str(value))


@given(st.text("0123456789.,-+/$#= \n\\boxed{}answer is", max_size=80))
def test_any_text_can_be_read(answer: str) -> None:
    assert is_correct(answer, answer) is (final_number(answer) is not None)
