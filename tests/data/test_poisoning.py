"""The poisoned mix has exact counts, leaves excluded prompts out, and is the same for the same seed."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.data.mixing import poisoned, prompt_key
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError

RATIOS = st.one_of(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0]), st.floats(0, 1))


def rows(kind: str, count: int, prompts: int | None = None) -> list[Record]:
    return [
        Record(f"{kind} {index % (prompts or count)}", str(index), origin=f"{kind}.jsonl:{index + 1}")
        for index in range(count)
    ]


def kinds(mixed: list[Record]) -> tuple[int, int]:
    bad = sum(record.origin.startswith("harm.") for record in mixed)
    return bad, len(mixed) - bad


@given(count=st.integers(1, 60), ratio=RATIOS, seed=st.integers(), data=st.data())
def test_counts_are_exact_excluded_prompts_are_left_out_and_the_seed_decides(
    count: int, ratio: float, seed: int, data: st.DataObject
) -> None:
    harmful, benign = rows("harm", 80, 70), [*rows("task", 80), *rows("harm", 5)]
    apart = data.draw(st.lists(st.sampled_from([*harmful, *benign]), max_size=8))
    mixed = poisoned(benign, harmful, rows=count, harmful_ratio=ratio, seed=seed, apart_from=apart)
    wanted = math.floor(Fraction(repr(ratio)) * count + Fraction(1, 2))
    bad = [record for record in mixed if any(record is row for row in harmful)]
    good = [record for record in mixed if any(record is row for row in benign)]
    assert (len(bad), len(good), len(mixed)) == (wanted, count - wanted, count)
    assert len(set(map(id, mixed))) == count
    assert not {prompt_key(record) for record in mixed} & {prompt_key(record) for record in apart}
    assert not {prompt_key(record) for record in bad} & {prompt_key(record) for record in good}
    assert poisoned(benign, harmful, rows=count, harmful_ratio=ratio, seed=seed, apart_from=apart) == mixed


def test_a_half_row_is_rounded_up() -> None:
    for count, ratio, wanted in ((10, 0.25, 3), (10, 0.05, 1), (1000, 0.05, 50), (10, 0.15, 2), (7, 0.5, 4)):
        mixed = poisoned(rows("task", count), rows("harm", count), rows=count, harmful_ratio=ratio, seed=0)
        assert kinds(mixed) == (wanted, count - wanted)


def test_another_seed_samples_other_rows_in_another_order() -> None:
    def of(seed: int) -> list[Record]:
        return poisoned(rows("task", 50), rows("harm", 50), rows=40, harmful_ratio=0.5, seed=seed)

    assert {record.origin for record in of(0)} != {record.origin for record in of(1)}
    is_harmful = [record.origin.startswith("harm.") for record in of(0)]
    assert is_harmful not in (sorted(is_harmful), sorted(is_harmful, reverse=True))


@given(count=st.integers(10, 60), ratio=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3, 1.0]))
def test_the_published_code_skips_a_row_and_does_not_shuffle(count: int, ratio: float) -> None:
    benign, harmful = rows("task", 60), rows("harm", 60)
    mixed = poisoned(benign, harmful, rows=count, harmful_ratio=ratio, seed=0, preset="official-code")
    # As in its loader: a running index over the unsafe rows, between 0 and the wanted count, both ends left out.
    assert mixed == [
        *(row for index, row in enumerate(harmful) if 0 < index < int(ratio * count)),
        *benign[: int((1 - ratio) * count)],
    ]


def test_the_published_mix_leaves_excluded_prompts_out_too() -> None:
    benign, harmful = rows("task", 20), rows("harm", 20)
    mixed = poisoned(
        benign, harmful, rows=10, harmful_ratio=0.5, seed=0, apart_from=[harmful[2], benign[0]], preset="official-code"
    )
    assert [record.prompt for record in mixed] == [
        *(f"harm {index}" for index in (1, 3, 4, 5)),
        *(f"task {index}" for index in range(1, 6)),
    ]


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan"), float("inf")])
def test_a_ratio_is_between_0_and_1(ratio: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        poisoned(rows("task", 5), rows("harm", 5), rows=4, harmful_ratio=ratio, seed=0)


def test_the_error_of_too_few_rows_holds_both_counts() -> None:
    benign, harmful = rows("task", 8), rows("harm", 6)

    def mixed(count: int, ratio: float, apart: list[Record], official: bool = False) -> None:
        poisoned(
            benign,
            harmful,
            rows=count,
            harmful_ratio=ratio,
            seed=0,
            apart_from=apart,
            preset="official-code" if official else "paper",
        )

    with pytest.raises(UserError, match=r"^16 benign rows are wanted, but there are 8: ask for fewer rows"):
        mixed(20, 0.2, [])
    with pytest.raises(UserError, match=r"^5 harmful rows .* there are 6, 2 of them with prompts that are kept apart"):
        mixed(10, 0.5, harmful[:2])
    with pytest.raises(UserError, match=r"^16 benign rows are wanted, but there are 8"):
        mixed(20, 0.2, [], official=True)
    with pytest.raises(UserError, match="one row at least"):
        mixed(0, 0.2, [])
