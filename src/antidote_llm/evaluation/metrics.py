"""Numbers with intervals: shares, paired differences, and the gain kept. All in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 10_000
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


class Estimate(BaseModel):
    """A number in percent with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float = Field(description="The estimate, in percent (a difference: in percentage points).")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")
    n: int = Field(ge=1, description="How many prompts it rests on.")

    @model_validator(mode="after")
    def _ordered(self) -> Estimate:
        if self.low > self.high:
            raise ValueError(f"the interval ends before it starts: {self.low} to {self.high}")
        return self


class GainKept(BaseModel):
    """How much of what the fine-tune taught remains after the repair, or why that is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: Estimate | None = Field(description="(repaired - aligned) / (attacked - aligned), in percent.")
    reason: str | None = Field(default=None, description="Why there is no estimate.")


def share(flags: Sequence[bool]) -> Estimate:
    """Return the share of true values, with Wilson's score interval.

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212; as in Newcombe, Stat. Med. 17 (1998) 857-872, method 3.

    Raises:
        ValueError: There are no values.
    """
    n, value = len(flags), _mean(flags)
    low, high = _wilson(value, n)
    return Estimate(value=100 * value, low=100 * low, high=100 * high, n=n)


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """Return the share after less the share before, in percentage points, on the same prompts in the same order.

    The interval is Newcombe's for paired proportions: Wilson's limits of both shares, combined by their correlation.
    Unlike a bootstrap interval it has a width even where all prompts change in the same way. Source: Newcombe, Stat.
    Med. 17 (1998) 2635-2650, method 10.

    Raises:
        ValueError: The sequences differ in length or are empty.
    """
    pairs = list(zip(before, after, strict=True))
    n = len(pairs)
    p_before, p_after = _mean(before), _mean(after)
    low_before, high_before = _wilson(p_before, n)
    low_after, high_after = _wilson(p_after, n)
    phi = _phi(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))
    difference = p_after - p_before
    below = _combined(p_after - low_after, high_before - p_before, phi)
    above = _combined(high_after - p_after, p_before - low_before, phi)
    return Estimate(value=100 * difference, low=100 * (difference - below), high=100 * (difference + above), n=n)


def gain_kept(repaired: Sequence[bool], attacked: Sequence[bool], aligned: Sequence[bool], seed: int = 0) -> GainKept:
    """Return (repaired - aligned) / (attacked - aligned) in percent, on the same prompts in the same order.

    100 keeps all of the fine-tune's gain on the task, 0 is the aligned model. The interval is the
    percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13). There is no estimate unless the gain is
    clearly above zero: in all of the 10,000 resamples.

    Args:
        repaired: Whether the repaired model answered each prompt right.
        attacked: The same for the fine-tuned model.
        aligned: The same for the aligned model.
        seed: Seed of the resampling.

    Raises:
        ValueError: The sequences differ in length or are empty.
    """
    rows_N3 = np.array(list(zip(repaired, attacked, aligned, strict=True)), dtype=np.int64)
    n = len(rows_N3)
    gain = paired_difference(aligned, attacked)
    # A resample is determined by how often it holds each of the eight kinds of row.
    kinds_K3, counts_K = np.unique(rows_N3, axis=0, return_counts=True)
    draws_DK = np.random.default_rng(seed).multinomial(n, counts_K / n, size=BOOTSTRAP_DRAWS)
    kept_K, gained_K = kinds_K3[:, 0] - kinds_K3[:, 2], kinds_K3[:, 1] - kinds_K3[:, 2]
    gained_D = draws_DK @ gained_K
    if (gained_D <= 0).any():
        return GainKept(
            estimate=None,
            reason=f"the fine-tune's gain on this task is not clearly above zero: {gain.value:.1f} points, "
            f"95 % interval {gain.low:.1f} to {gain.high:.1f}, n = {n}",
        )
    low, high = np.percentile(draws_DK @ kept_K / gained_D, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    value = float(counts_K @ kept_K / (counts_K @ gained_K))
    return GainKept(estimate=Estimate(value=100 * value, low=100 * float(low), high=100 * float(high), n=n))


def _mean(flags: Sequence[bool]) -> float:
    if not flags:
        raise ValueError("no answers to count")
    return sum(flags) / len(flags)


def _wilson(share: float, n: int) -> tuple[float, float]:
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # Rounding must not move the limits past the share itself.
    return min(share, max(0.0, (centre - half) / scale)), max(share, min(1.0, (centre + half) / scale))


def _phi(both: int, first: int, second: int, neither: int) -> float:
    """Return Newcombe's correlation of a paired two-by-two table, with his correction for continuity."""
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - first * second)
    if product > 0:
        product = max(product - (both + first + second + neither) / 2, 0)
    return product / math.sqrt(margins)


def _combined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))
