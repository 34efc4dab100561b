"""Counts scores by their bits, which finds the k-th highest of any number of scores without sorting or keeping them.

The bits of non-negative floating-point numbers are ordered as the numbers are. A first histogram counts their leading
16 bits; a second one, of those scores alone that share the leading bits of the k-th highest, the next 16; and so on.
Histograms of several files, processes or blocks add up to the histogram of all.

Legend: P prefixes, D the 65,536 values of 16 bits, N scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antidote_llm.errors import DefectError

DIGIT_BITS = 16
_DIGITS = 1 << DIGIT_BITS
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class ScoreBits:
    """The bits of some scores, as many at a time as fit in a block.

    Args:
        scores: Non-negative, float32 or float64, of any shape.
    """

    def __init__(self, scores: Tensor) -> None:
        if scores.dtype not in _INTEGERS:
            raise DefectError(f"scores are {scores.dtype}: they are ranked as float32 or float64")
        self.dtype = scores.dtype
        # Adding 0 makes a minus zero, whose bits are those of a negative number, a plus zero.
        self._bits_N: NDArray[np.signedinteger] = (scores + 0).reshape(-1).view(_INTEGERS[scores.dtype]).cpu().numpy()

    @classmethod
    def _of(cls, dtype: torch.dtype, bits_N: NDArray[np.signedinteger]) -> ScoreBits:
        found = cls.__new__(cls)
        found.dtype, found._bits_N = dtype, bits_N
        return found

    @cached_property
    def leading_N(self) -> NDArray[np.int16]:
        """The leading 16 bits of each; the sign is 0."""
        return self.prefixes_N(1).astype(np.int16)

    @cached_property
    def leading(self) -> ScoreHistogram:
        """The histogram of the leading 16 bits."""
        return ScoreHistogram(self.dtype, 0, (0,), _counts(self.leading_N)[None])

    def prefixes_N(self, digits: int) -> NDArray[np.signedinteger]:
        """Return the leading bits of each, so many digits of them."""
        return self._bits_N >> (8 * self.dtype.itemsize - DIGIT_BITS * digits)

    def equal_to(self, bits: int) -> int:
        """Return how many have exactly these bits."""
        return int(np.count_nonzero(self._bits_N == bits))

    def within(self, leading: Sequence[int]) -> ScoreBits:
        """Return those whose leading 16 bits are one of these."""
        table_D = np.zeros(_DIGITS // 2, dtype=np.bool_)
        table_D[list(leading)] = True
        chosen_N = self.leading_N == leading[0] if len(leading) == 1 else np.take(table_D, self.leading_N)
        return ScoreBits._of(self.dtype, self._bits_N[np.flatnonzero(chosen_N)])


def _counts(digits_N: NDArray[np.signedinteger]) -> NDArray[np.int64]:
    return torch.bincount(torch.from_numpy(digits_N), minlength=_DIGITS).numpy()


@dataclass
class ScoreHistogram:
    """How many scores have each value of 16 of their bits, apart for some values of the bits above.

    Attributes:
        dtype: The scores' type.
        digits: How many digits of 16 bits are above those that are counted.
        prefixes: The bits above; only scores that have them are counted. With no digit above, this is 0.
        counts_PD: The counts.
    """

    dtype: torch.dtype
    digits: int
    prefixes: tuple[int, ...]
    counts_PD: NDArray[np.int64]

    @classmethod
    def empty(cls, dtype: torch.dtype, digits: int = 0, prefixes: Sequence[int] = (0,)) -> ScoreHistogram:
        """Return a histogram of nothing; by default, of the leading bits."""
        return cls(dtype, digits, tuple(prefixes), np.zeros((len(prefixes), _DIGITS), dtype=np.int64))

    @property
    def is_last(self) -> bool:
        """Whether no bits are below those that are counted."""
        return DIGIT_BITS * (self.digits + 1) == 8 * self.dtype.itemsize

    def add(self, scores: ScoreBits) -> None:
        """Count some scores."""
        if scores.dtype != self.dtype:
            raise DefectError(f"scores are {scores.dtype}, the histogram is of {self.dtype}")
        if self.digits == 0:
            self += scores.leading
            return
        found_N = scores.prefixes_N(self.digits + 1)
        above_N = found_N >> DIGIT_BITS
        for row, prefix in enumerate(self.prefixes):
            digits_N = found_N[above_N == prefix] & (_DIGITS - 1)
            self.counts_PD[row] += _counts(digits_N)

    def __iadd__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Add the counts of other scores, as those of another shard."""
        if (self.dtype, self.digits, self.prefixes) != (other.dtype, other.digits, other.prefixes):
            raise DefectError("histograms of different bits do not add up")
        self.counts_PD += other.counts_PD
        return self

    def descend(self, place: Place) -> Place:
        """Find one more digit of the k-th highest score.

        Args:
            place: The digits found so far, all of a prefix that is counted here.
        """
        counts_D = self.counts_PD[self.prefixes.index(place.prefix)]
        from_the_top_D = np.cumsum(counts_D[::-1])
        step = int(np.searchsorted(from_the_top_D, place.rank))
        rank = place.rank - (int(from_the_top_D[step - 1]) if step else 0)
        digit = _DIGITS - 1 - step
        return Place((place.prefix << DIGIT_BITS) | digit, rank, int(counts_D[digit]))


@dataclass(frozen=True)
class Place:
    """Where the k-th highest score lies, as far as its bits are known.

    Attributes:
        prefix: Its leading bits.
        rank: Which it is among the scores with these bits, counted from the highest.
        shared: How many scores have these bits.
    """

    prefix: int
    rank: int
    shared: int = 0


def score_of_bits(bits: int, dtype: torch.dtype) -> float:
    """Return the score that has these bits."""
    return float(torch.tensor(bits, dtype=_INTEGERS[dtype]).view(dtype))
