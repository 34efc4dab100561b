"""Histograms of shards add up to the histogram of all, and lead to the k-th highest score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from antidote_llm.errors import DefectError
from antidote_llm.repairs.radix_select import DIGIT_BITS, Place, ScoreBits, ScoreHistogram, score_of_bits

VALUES = (0.0, -0.0, 1.0, 1.0 + 2**-23, 2.0, 0.5, 3e-39, 1.4e-45, 65504.0, 3e38, 1e-30, float("inf"))


def counted(shards: list[Tensor], digits: int, prefixes: list[int]) -> ScoreHistogram:
    """Count every shard apart, and add up."""
    total = ScoreHistogram.empty(shards[0].dtype, digits, prefixes)
    for shard in shards:
        own = ScoreHistogram.empty(shard.dtype, digits, prefixes)
        own.add(ScoreBits(shard))
        total += own
    return total


def kth_highest(shards: list[Tensor], k: int) -> tuple[float, int, int]:
    """Return the k-th highest score of all shards, which it is of its equals, and how many those are."""
    dtype, place = shards[0].dtype, Place(0, k)
    for digits in range(8 * dtype.itemsize // DIGIT_BITS):
        place = counted(shards, digits, [place.prefix]).descend(place)
    return score_of_bits(place.prefix, dtype), place.rank, place.shared


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.sampled_from(VALUES) | st.floats(0, 10, width=32), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_shards_lead_to_the_kth_highest_of_all(
    values: list[float], cuts: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    scores = torch.tensor(values, dtype=dtype)
    k = data.draw(st.integers(1, len(values)))
    shards = list(torch.tensor_split(scores, sorted(min(cut, len(values)) for cut in cuts)))
    wanted = float(scores.sort(descending=True).values[k - 1])
    ties = int((scores == wanted).sum())
    assert kth_highest(shards, k) == (wanted, k - int((scores > wanted).sum()), ties)


def test_several_prefixes_are_counted_apart() -> None:
    scores = torch.tensor([1.0, 1.0 + 2**-20, 2.0, 2.0 + 2**-19, 2.0 + 2**-19, 3.0])
    one, two = (int(torch.tensor(value).view(torch.int32)) >> 16 for value in (1.0, 2.0))
    found = counted([scores], 1, [one, two])
    assert found.counts_PD.sum(axis=1).tolist() == [2, 3]
    assert found.counts_PD[:, 0].tolist() == [1, 1]
    assert found.is_last


def test_few_are_those_with_the_leading_bits() -> None:
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    bits = scores.view(torch.int32) >> 16
    for chosen in ([int(bits[0])], sorted({int(bits[0]), int(bits[1]), int(bits[2])})):
        few = ScoreBits(scores).within(chosen)
        assert int(few.leading.counts_PD.sum()) == sum(int((bits == each).sum()) for each in chosen)


def test_what_does_not_add_up_is_our_defect() -> None:
    floats = ScoreHistogram.empty(torch.float32)
    with pytest.raises(DefectError, match="do not add up"):
        floats += ScoreHistogram.empty(torch.float32, 1, [5])
    with pytest.raises(DefectError, match="float64"):
        floats.add(ScoreBits(torch.ones(2).double()))
    with pytest.raises(DefectError, match="bfloat16"):
        ScoreBits(torch.ones(2).bfloat16())
