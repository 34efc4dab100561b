"""Intervals against published values, and properties that hold for any answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antidote_llm.evaluation.metrics import Estimate, gain_kept, paired_difference, share

Pairs = list[tuple[bool, bool]]


def counted(true: int, n: int) -> list[bool]:
    return [True] * true + [False] * (n - true)


def table(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    one = counted(both + first, both + first + second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    return one, other


@pytest.mark.parametrize(
    ("true", "n", "low", "high"),
    # Newcombe, Stat. Med. 17 (1998) 857-872, table I, method 3.
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_as_published(true: int, n: int, low: float, high: float) -> None:
    found = share(counted(true, n))

    assert (round(found.low, 2), round(found.high, 2)) == (low, high)
    assert found.value == pytest.approx(100 * true / n)
    assert found.n == n


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # Newcombe, Stat. Med. 17 (1998) 2635-2650, method 10.
        ((36, 12, 2, 0), 5.69, 34.04),
        # Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
        ((1, 1, 7, 12), -50.7, -2.6),
    ],
)
def test_newcombe_as_published(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    first, second = table(*cells)
    found = paired_difference(second, first)

    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)


def test_the_interval_of_a_complete_change_has_a_width() -> None:
    found = paired_difference([True] * 50, [False] * 50)

    assert found.value == found.low == -100
    assert -100 < found.high < -85


def test_pairing_narrows_the_interval() -> None:
    paired = paired_difference(*table(50, 10, 0, 40))
    unpaired = paired_difference(*table(20, 40, 30, 10))

    assert paired.value == unpaired.value
    assert paired.high - paired.low < unpaired.high - unpaired.low


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_difference_is_in_its_interval_and_antisymmetric(pairs: Pairs) -> None:
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    forth, back = paired_difference(before, after), paired_difference(after, before)

    assert forth.low <= forth.value <= forth.high
    assert forth.value == pytest.approx(share(after).value - share(before).value)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


def test_sequences_must_be_of_equal_length() -> None:
    with pytest.raises(ValueError):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError):
        share([])


def estimate(repaired: list[bool], attacked: list[bool], aligned: list[bool]) -> Estimate:
    found = gain_kept(repaired, attacked, aligned).estimate
    assert found is not None
    return found


def test_gain_kept_is_the_share_of_the_gain() -> None:
    aligned, attacked, repaired = counted(20, 100), counted(80, 100), counted(65, 100)
    found = estimate(repaired, attacked, aligned)

    assert found.value == pytest.approx(75)
    assert 60 < found.low < 75 < found.high < 90
    assert found == estimate(repaired, attacked, aligned), "the same seed gives the same interval"
    assert found.n == 100


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.integers(20, 60))
@settings(max_examples=40, deadline=None)
def test_the_attacked_model_keeps_the_whole_gain_and_the_aligned_one_none(pairs: Pairs, gained: int) -> None:
    attacked = [pair[0] for pair in pairs] + [True] * (gained + 2 * len(pairs))
    aligned = [pair[1] for pair in pairs] + [False] * (gained + 2 * len(pairs))
    everything, nothing = estimate(attacked, attacked, aligned), estimate(aligned, attacked, aligned)

    assert (everything.low, everything.value, everything.high) == pytest.approx((100, 100, 100))
    assert (nothing.low, nothing.value, nothing.high) == pytest.approx((0, 0, 0))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_gain_kept_is_either_a_number_with_an_interval_around_it_or_a_reason(
    rows: list[tuple[bool, bool, bool]],
) -> None:
    repaired, attacked, aligned = ([row[place] for row in rows] for place in range(3))
    found = gain_kept(repaired, attacked, aligned)

    assert (found.estimate is None) == (found.reason is not None)
    if found.estimate is not None:
        assert found.estimate.low <= found.estimate.high
        assert sum(attacked) > sum(aligned)


@pytest.mark.parametrize("attacked", [counted(50, 100), counted(40, 100), counted(52, 100)])
def test_without_a_clear_gain_there_is_a_reason_instead_of_a_ratio(attacked: list[bool]) -> None:
    found = gain_kept(counted(45, 100), attacked, counted(50, 100))

    assert found.estimate is None
    assert found.reason is not None
    assert "not clearly above zero" in found.reason
