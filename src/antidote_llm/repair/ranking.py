"""Where to cut what is ranked together: exact thresholds over many matrices, for many counts at a time.

Each ranking looks at all its scores twice (float64: four times), and once more where only some of the scores that are
equal to a threshold are picked. It keeps histograms alone, and only from a ranking's
first site to its last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from antidote_llm.errors import DefectError
from antidote_llm.models.sites import Site
from antidote_llm.repair.histogram import DIGIT_BITS, Place, ScoreBits, ScoreHistogram, score_of_bits


@dataclass(frozen=True)
class Cut:
    """Where a site's scores are cut: all above the threshold are picked, and the last of those that are equal to it.

    Attributes:
        threshold: The lowest score that is picked.
        passed_over: How many entries equal to it, from the site's first on, are not picked.
    """

    threshold: float
    passed_over: int


class Cutter:
    """Cuts one site's scores, given in consecutive blocks of rows."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._left = cut.passed_over

    def mask(self, scores_OI: Tensor) -> Tensor:
        """Return the mask of what is picked of the next rows."""
        if self._left == 0:
            return scores_OI >= self._cut.threshold
        mask_OI = scores_OI > self._cut.threshold
        row, column = torch.nonzero(scores_OI == self._cut.threshold, as_tuple=True)
        mask_OI[row[self._left :], column[self._left :]] = True
        self._left -= min(self._left, len(row))
        return mask_OI


class Ranking:
    """Finds the cuts of sites that are ranked together, for several counts of picked entries.

    Every unfinished ranking is shown each of its sites' scores in turn, in order, again and again until it is finished.

    Args:
        sites: In network order: ties fall to the later one.
        counts: How many entries are to be picked.

    Attributes:
        sites: The sites.
        entries: How many entries they have together.
        finished: Whether every cut is found.
    """

    def __init__(self, sites: Sequence[Site], counts: Sequence[int]) -> None:
        self.sites = sites
        self.entries = sum(site.shape[0] * site.shape[1] for site in sites)
        self._places = {k: Place(0, k, self.entries) for k in counts if 0 < k < self.entries}
        self._dtype: torch.dtype | None = None
        self._digits = 0
        self._histogram: ScoreHistogram | None = None
        self._tied: dict[int, dict[str, int]] = {}
        self.finished = not self._places

    @property
    def leading(self) -> frozenset[int] | None:
        """The leading bits of the scores that it looks at this time; None for all."""
        if self._digits == 0:
            return None
        return frozenset(place.prefix >> DIGIT_BITS * (self._digits - 1) for place in self._places.values())

    def add(self, site: Site, scores: ScoreBits) -> None:
        """Look at a block of a site's scores."""
        self._dtype = self._dtype or scores.dtype
        if scores.dtype != self._dtype:
            raise DefectError(f"{site.name}: scored in {scores.dtype}, {self.sites[0].name} in {self._dtype}")
        if self._tied:
            for bits, tied in self._tied.items():
                tied[site.name] += scores.equal_to(bits)
            return
        if self._histogram is None:
            prefixes = sorted({place.prefix for place in self._places.values()})
            self._histogram = ScoreHistogram.empty(scores.dtype, self._digits, prefixes)
        self._histogram.add(scores)

    def leave(self, site: Site) -> None:
        """Note that all of a site's scores have been seen this time."""
        if site is not self.sites[-1]:
            return
        if self._tied:
            self.finished = True
            return
        histogram, self._histogram = self._histogram, None
        assert histogram is not None
        self._places = {k: histogram.descend(place) for k, place in self._places.items()}
        self._digits += 1
        if histogram.is_last:
            crowded = {place.prefix for place in self._places.values() if place.rank < place.shared}
            self._tied = {bits: dict.fromkeys((site.name for site in self.sites), 0) for bits in crowded}
            self.finished = not crowded

    def cuts(self, k: int) -> dict[str, Cut]:
        """Return where each site is cut so that all together lose k entries."""
        if k == 0:
            return {site.name: Cut(math.inf, site.shape[0] * site.shape[1]) for site in self.sites}
        if k == self.entries:
            return {site.name: Cut(-1.0, 0) for site in self.sites}
        assert self._dtype is not None
        place, cuts = self._places[k], {}
        threshold, passed_over = score_of_bits(place.prefix, self._dtype), place.shared - place.rank
        for site in self.sites:
            tied = self._tied[place.prefix][site.name] if passed_over else 0
            cuts[site.name] = Cut(threshold, min(tied, passed_over))
            passed_over -= min(tied, passed_over)
        return cuts
