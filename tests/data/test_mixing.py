"""Several files make one data set in exact shares, the same for the same seed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.mixing import mix, read_mixed, shares
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError

WEIGHTS = st.one_of(st.floats(0.05, 20), st.integers(1, 9).map(float))


def rows(name: str, count: int) -> list[Record]:
    return [Record(prompt=f"{name} {index}", origin=f"{name}.jsonl:{index + 1}") for index in range(count)]


def counts(mixed: list[Record], parts: int) -> list[int]:
    return [sum(str(record.prompt).startswith(f"{part} ") for record in mixed) for part in range(parts)]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), weight=WEIGHTS, seed=st.integers())
def test_without_a_limit_equal_weights_give_all_rows_in_order(sizes: list[int], weight: float, seed: int) -> None:
    parts = [(weight, rows(str(part), size)) for part, size in enumerate(sizes)]
    assert mix(parts, None, seed) == [record for _, records in parts for record in records]


@given(weights=st.lists(WEIGHTS, min_size=1, max_size=5), limit=st.integers(0, 300))
def test_shares_add_up_and_stay_within_one_row_of_their_quota(weights: list[float], limit: int) -> None:
    exact = [Fraction(repr(weight)) for weight in weights]
    found = shares(exact, limit)
    assert sum(found) == limit
    assert all(abs(share - weight * limit / sum(exact)) < 1 for share, weight in zip(found, exact, strict=True))


def test_the_largest_remainders_are_rounded_up() -> None:
    assert shares([Fraction(5), Fraction(3), Fraction(1)], 10) == [6, 3, 1]
    assert shares([Fraction(1)] * 3, 8) == [3, 3, 2]
    assert shares([Fraction(47), Fraction(16), Fraction(37)], 10) == [5, 1, 4]


@given(
    weights=st.lists(WEIGHTS, min_size=1, max_size=4),
    limit=st.integers(1, 40) | st.none(),
    seed=st.integers(0, 9),
    size=st.integers(1, 40),
)
def test_a_sample_has_exact_counts_no_duplicates_and_the_original_order(
    weights: list[float], limit: int | None, seed: int, size: int
) -> None:
    parts = [(weight, rows(str(part), size + 3 * part)) for part, weight in enumerate(weights)]
    try:
        mixed = mix(parts, limit, seed)
    except UserError as error:
        assert "\n" not in str(error)
        return
    if len(set(weights)) > 1 or limit is not None:
        exact = [Fraction(repr(weight)) for weight in weights]
        assert counts(mixed, len(parts)) == shares(exact, len(mixed))
    assert limit is None or len(mixed) == limit
    places = [(str(record.prompt).split()[0], int(str(record.prompt).split()[1])) for record in mixed]
    assert places == sorted(set(places))
    assert mix(parts, limit, seed) == mixed


@given(weights=st.lists(st.integers(1, 6), min_size=2, max_size=3), sizes=st.lists(st.integers(6, 30), min_size=3))
def test_without_a_limit_the_mix_is_the_largest_possible(weights: list[int], sizes: list[int]) -> None:
    exact = [Fraction(weight) for weight in weights]
    parts = [(float(weight), rows(str(part), sizes[part])) for part, weight in enumerate(weights)]
    if len(set(weights)) == 1:
        return
    fitting = [
        total
        for total in range(sum(sizes) + 1)
        if all(share <= size for share, size in zip(shares(exact, total), sizes, strict=False))
    ]
    assert len(mix(parts, None, 0)) == max(fitting)


def test_another_seed_samples_other_rows() -> None:
    parts = [(1.0, rows("0", 50))]
    assert len(mix(parts, 10, 0)) == 10
    assert mix(parts, 10, 0) != mix(parts, 10, 1)


def test_a_file_with_too_few_rows_for_its_share_is_named() -> None:
    parts = [(1.0, rows("few", 3)), (1.0, rows("many", 30))]
    with pytest.raises(
        UserError, match=r"^few\.jsonl has 3 rows, but 5 are wanted of it: ask for fewer rows, or lower"
    ):
        mix(parts, 10, 0)
    with pytest.raises(UserError, match=r"^no row is wanted of few\.jsonl: "):
        mix([(0.01, rows("few", 3)), (1.0, rows("many", 30))], 10, 0)


def test_files_are_read_and_mixed_by_their_weights(tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / f"{name}.csv").write_text("goal\n" + "".join(f"{name} {index}\n" for index in range(12)))
    specs = [
        DataSpec.parse(f"{tmp_path}/0.csv:prompt=goal,weight=3"),
        DataSpec.parse(f"{tmp_path}/1.csv:prompt=goal"),
    ]
    assert counts(read_mixed(specs, 8, 0), 2) == [6, 2]
    assert counts(read_mixed(specs, None, 0), 2) == [12, 4]
