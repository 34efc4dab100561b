"""Which entries of which matrices are selected: the exact top fraction of every group that is ranked together.

Where matrices are ranked whole, a radix select finds a group's thresholds, those of many fractions in the same passes.
It reads all scores of the group twice (float64: four times), and once more if only some of the scores that are equal to
a threshold are selected. It holds histograms and no scores, from the group's first site to its last.

Legend: O rows and I columns of a matrix, G groups of N scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from antidote_llm.choices import Rounding, Scope
from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.sites import Site
from antidote_llm.repairs.radix_select import DIGIT_BITS, Place, ScoreBits, ScoreHistogram, score_of_bits

_UNFIT = "scores must be non-negative and of the matrix's shape"
Score: TypeAlias = Callable[[Site], Iterable[Tensor]]


@dataclass(frozen=True)
class Request:
    """What is to be selected.

    Attributes:
        alpha: The fraction, 0 to 1.
        scope: What is ranked together: a row, a matrix, all matrices of a decoder layer, or all matrices.
        rounding: How a fraction becomes a count.
        without_evidence: Whether entries of score 0 may be selected; an alpha of 1 always selects them.
    """

    alpha: float
    scope: Scope
    rounding: Rounding
    without_evidence: bool

    def count(self, entries: int) -> int:
        """Return how many of a group's entries are selected."""
        return count(entries, self.alpha, self.rounding)


def count(entries: int, alpha: float, rounding: Rounding) -> int:
    """Return how many of ``entries`` a fraction ``alpha`` is.

    ``nearest`` rounds half up; ``official`` is the published code's ``n - int(n * (1 - alpha))``, which is at least 1
    for any alpha above 0.
    """
    if rounding == "official":
        return entries - int(entries * (1 - alpha))
    return math.floor(alpha * entries + 0.5)


def ranked_together(sites: Sequence[Site], scope: Scope) -> list[list[Site]]:
    """Return the sites of every group that a scope ranks together; scope ``row`` ranks within a site."""
    groups: dict[Hashable, list[Site]] = {}
    for site in sites:
        key = site.name if scope in ("row", "matrix") else site.layer if scope == "layer" else None
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def top_entries(scores_GN: Tensor, k: int) -> Tensor:
    """Return the mask of the ``k`` highest scores of each group; of equal scores, those with the larger index.

    This is what a stable ascending sort has at its end, as in the published code, without sorting.
    """
    entries = scores_GN.shape[1]
    if k == 0 or entries == 0:
        return torch.zeros_like(scores_GN, dtype=torch.bool)
    if k == entries:
        return torch.ones_like(scores_GN, dtype=torch.bool)
    threshold_G1 = kth_highest(scores_GN, k)
    mask_GN = scores_GN >= threshold_G1
    # Every group has at least k of these: any more are ties.
    if int(torch.count_nonzero(mask_GN)) > k * len(mask_GN):
        _drop_first_ties(mask_GN, scores_GN, threshold_G1, k)
    return mask_GN


def kth_highest(scores_GN: Tensor, k: int) -> Tensor:
    """Return the k-th highest score of each group, shape [groups, 1]."""
    return (_by_partition if scores_GN.device.type == "cpu" else _by_topk)(scores_GN, k)


def _by_partition(scores_GN: Tensor, k: int) -> Tensor:
    """Many times faster on a CPU than torch's topk and kthvalue, which also move indices."""
    place = scores_GN.shape[1] - k
    return torch.from_numpy(np.partition(scores_GN.numpy(), place, axis=1)[:, place : place + 1])


def _by_topk(scores_GN: Tensor, k: int) -> Tensor:
    return scores_GN.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def _drop_first_ties(mask_GN: Tensor, scores_GN: Tensor, threshold_G1: Tensor, k: int) -> None:
    """Deselect the first entries that are equal to the threshold in groups with more than k selected."""
    counts_G = torch.count_nonzero(mask_GN, dim=1)
    crowded = torch.nonzero(counts_G > k).squeeze(1)
    group, entry = torch.nonzero(scores_GN[crowded] == threshold_G1[crowded], as_tuple=True)
    ties_G = torch.bincount(group, minlength=len(crowded))
    rank = torch.arange(len(group), device=group.device) - (ties_G.cumsum(0) - ties_G)[group]
    dropped = rank < (counts_G[crowded] - k)[group]
    mask_GN[crowded[group[dropped]], entry[dropped]] = False


@dataclass(frozen=True)
class Threshold:
    """A site's threshold: all scores above it are selected, and the last of those that are equal to it.

    Attributes:
        score: The lowest score that is selected.
        skipped_ties: How many entries equal to it, from the site's first on, are not selected.
    """

    score: float
    skipped_ties: int


class ThresholdMask:
    """The mask of one site, from its scores in consecutive blocks of rows.

    Args:
        request: What is to be selected.
        site: The site.
        threshold: The site's threshold; None where each row is ranked on its own.
    """

    def __init__(self, request: Request, site: Site, threshold: Threshold | None) -> None:
        self._request, self._site, self._threshold = request, site, threshold
        self._ties_to_skip = 0 if threshold is None else threshold.skipped_ties

    def next_rows(self, scores_OI: Tensor) -> Tensor:
        """Return the boolean mask of the next rows.

        Raises:
            UserError: A score is NaN.
        """
        scores_OI = checked(self._site, scores_OI)
        if self._threshold is None:
            mask_OI = top_entries(scores_OI, self._request.count(self._site.shape[1]))
        else:
            mask_OI = self._above(scores_OI, self._threshold.score)
        every_entry = self._request.without_evidence or self._request.alpha == 1
        return mask_OI if every_entry else mask_OI & (scores_OI > 0)

    def _above(self, scores_OI: Tensor, threshold: float) -> Tensor:
        if self._ties_to_skip == 0:
            return scores_OI >= threshold
        mask_OI = scores_OI > threshold
        row, column = torch.nonzero(scores_OI == threshold, as_tuple=True)
        mask_OI[row[self._ties_to_skip :], column[self._ties_to_skip :]] = True
        self._ties_to_skip -= min(self._ties_to_skip, len(row))
        return mask_OI


@dataclass(frozen=True)
class Selection:
    """Which entries of each site are selected.

    Attributes:
        request: What was asked for.
        thresholds: By site, where matrices are ranked whole.
    """

    request: Request
    thresholds: Mapping[str, Threshold]

    def mask(self, site: Site, scores_OI: Tensor) -> Tensor:
        """Return the boolean mask of a whole site, shape [rows, columns].

        Raises:
            UserError: A score is NaN.
        """
        if tuple(scores_OI.shape) != site.shape:
            raise DefectError(f"{site.name}: {_UNFIT}")
        return self.mask_by_rows(site).next_rows(scores_OI)

    def mask_by_rows(self, site: Site) -> ThresholdMask:
        """Return what makes a site's mask, some rows at a time."""
        return ThresholdMask(self.request, site, self.thresholds.get(site.name))

    def most_bytes(self, sites: Sequence[Site], item_bytes: Mapping[str, int]) -> int:
        """Return how many bytes the selected entries take at most, by the size of an entry of each site."""
        total = 0
        for members in ranked_together(sites, self.request.scope):
            selected = self.request.count(_entries(members))
            if self.request.scope == "row":
                selected = sum(site.shape[0] * self.request.count(site.shape[1]) for site in members)
            total += selected * max(item_bytes[site.name] for site in members)
        return total


class _RadixSelect:
    """Finds the thresholds of sites that are ranked together, for several counts of selected entries.

    Until it is finished it is given the scores of all its sites, in order, again and again.

    Args:
        sites: In network order: of equal scores, those of the later site are selected.
        counts: How many entries are to be selected.
    """

    def __init__(self, sites: Sequence[Site], counts: Sequence[int]) -> None:
        self._sites, self.entries = sites, _entries(sites)
        self._places = {k: Place(0, k, self.entries) for k in counts if 0 < k < self.entries}
        self._dtype: torch.dtype | None = None
        self._digits = 0
        self._histogram: ScoreHistogram | None = None
        self._ties: dict[int, dict[str, int]] = {}
        self.finished = not self._places

    def add(self, site: Site, scores: ScoreBits) -> None:
        """Count the scores of a block of a site's rows."""
        self._dtype = self._dtype or scores.dtype
        if scores.dtype != self._dtype:
            raise DefectError(f"{site.name}: scored in {scores.dtype}, {self._sites[0].name} in {self._dtype}")
        if self._digits:
            prefixes = [place.prefix >> DIGIT_BITS * (self._digits - 1) for place in self._places.values()]
            scores = scores.within(sorted(set(prefixes)))
        if self._ties:
            for bits, ties in self._ties.items():
                ties[site.name] += scores.equal_to(bits)
            return
        if self._histogram is None:
            prefixes = sorted({place.prefix for place in self._places.values()})
            self._histogram = ScoreHistogram.empty(scores.dtype, self._digits, prefixes)
        self._histogram.add(scores)

    def end_pass(self) -> None:
        """Note that the scores of all sites have been counted."""
        if self._ties:
            self.finished = True
            return
        histogram, self._histogram = self._histogram, None
        assert histogram is not None
        self._places = {k: histogram.descend(place) for k, place in self._places.items()}
        self._digits += 1
        if histogram.is_last:
            crowded = {place.prefix for place in self._places.values() if place.rank < place.shared}
            self._ties = {bits: dict.fromkeys((site.name for site in self._sites), 0) for bits in crowded}
            self.finished = not crowded

    def thresholds(self, k: int) -> dict[str, Threshold]:
        """Return the thresholds with which the sites together have k selected entries."""
        if k == 0:
            return {site.name: Threshold(math.inf, site.shape[0] * site.shape[1]) for site in self._sites}
        if k == self.entries:
            return {site.name: Threshold(-1.0, 0) for site in self._sites}
        assert self._dtype is not None
        place, found = self._places[k], {}
        score, to_skip = score_of_bits(place.prefix, self._dtype), place.shared - place.rank
        for site in self._sites:
            skipped = min(self._ties[place.prefix][site.name], to_skip) if to_skip else 0
            found[site.name] = Threshold(score, skipped)
            to_skip -= skipped
        return found


def select(sites: Sequence[Site], score: Score, request: Request) -> Selection:
    """Select the top fraction of the entries of every group that the scope ranks together.

    Args:
        sites: In network order: of equal scores, those of the later site are selected.
        score: Returns consecutive blocks of rows of a site's non-negative scores, [rows, columns], of the same type for
            all; called two to five times for each site where matrices are ranked whole, else never.
        request: What is to be selected.

    Raises:
        UserError: A score is NaN.
    """
    return select_many(sites, score, [request])[0]


def select_many(sites: Sequence[Site], score: Score, requests: Sequence[Request]) -> list[Selection]:
    """Do as :func:`select` for several requests of one scope, scoring as often as for the most demanding of them.

    Raises:
        DefectError: The requests have several scopes.
    """
    scope = requests[0].scope
    if any(request.scope != scope for request in requests):
        raise DefectError("selections of different scopes are not made together")
    thresholds: list[dict[str, Threshold]] = [{} for _ in requests]
    for members in ranked_together(sites, scope) if scope != "row" else []:
        search = _RadixSelect(members, [request.count(_entries(members)) for request in requests])
        while not search.finished:
            for site in members:
                _add_scores(search, site, score)
            search.end_pass()
        for request, found in zip(requests, thresholds, strict=True):
            found |= search.thresholds(request.count(search.entries))
    return [Selection(request, found) for request, found in zip(requests, thresholds, strict=True)]


def _add_scores(search: _RadixSelect, site: Site, score: Score) -> None:
    rows = 0
    for block_OI in score(site):
        rows += len(block_OI)
        search.add(site, ScoreBits(checked(site, block_OI)))
    if rows != site.shape[0]:
        raise DefectError(f"{site.name}: {_UNFIT}")


def _entries(sites: Sequence[Site]) -> int:
    return sum(site.shape[0] * site.shape[1] for site in sites)


def checked(site: Site, scores_OI: Tensor) -> Tensor:
    """Return scores of a site's rows as float32 or float64, refusing those that cannot be ranked."""
    scores_OI = scores_OI if scores_OI.dtype in (torch.float32, torch.float64) else scores_OI.float()
    if scores_OI.dim() != 2 or scores_OI.shape[1] != site.shape[1]:
        raise DefectError(f"{site.name}: {_UNFIT}")
    if scores_OI.numel():
        lowest, highest = (float(end) for end in scores_OI.aminmax())
        if math.isnan(lowest) or math.isnan(highest):
            raise UserError(f"{site.name}: a score is NaN: the checkpoint or its statistics are broken")
        if lowest < 0:
            raise DefectError(f"{site.name}: {_UNFIT}")
    return scores_OI
