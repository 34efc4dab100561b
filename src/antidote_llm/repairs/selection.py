"""Where to cut what is ranked together: exact thresholds over many matrices, for many counts at a time.

Each ranking looks at all its scores twice (float64: four times), and once more where only some of the scores that are
equal to a threshold are picked. It keeps histograms alone, and only from a ranking's
first site to its last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.sites import Site
from antidote_llm.repairs.radix_select import DIGIT_BITS, Place, ScoreBits, ScoreHistogram, score_of_bits


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


Scope: TypeAlias = Literal["row", "matrix", "layer", "global"]
Rounding: TypeAlias = Literal["nearest", "official"]
_UNFIT = "scores must be non-negative and of the matrix's shape"
Score: TypeAlias = Callable[[Site], Iterable[Tensor]]


def count(entries: int, alpha: float, rounding: Rounding) -> int:
    """Return how many of ``entries`` a fraction ``alpha`` is.

    ``nearest`` rounds half up; ``official`` is the published code's ``n - int(n * (1 - alpha))``, which is at least 1
    for any alpha above 0.
    """
    if rounding == "official":
        return entries - int(entries * (1 - alpha))
    return math.floor(alpha * entries + 0.5)


def top_entries(scores_GN: Tensor, k: int) -> Tensor:
    """Return the mask of the ``k`` highest scores of each group; of equal scores, those with the larger index.

    This is what a stable ascending sort picks from its end, as the published code does, without sorting.
    """
    entries = scores_GN.shape[1]
    if k == 0 or entries == 0:
        return torch.zeros_like(scores_GN, dtype=torch.bool)
    if k == entries:
        return torch.ones_like(scores_GN, dtype=torch.bool)
    threshold_G1 = _kth_highest(scores_GN, k)
    mask_GN = scores_GN >= threshold_G1
    # Every row has k of these at least: any more are ties.
    if int(torch.count_nonzero(mask_GN)) > k * len(mask_GN):
        _drop_first_ties(mask_GN, scores_GN, threshold_G1, k)
    return mask_GN


def _kth_highest(scores_GN: Tensor, k: int) -> Tensor:
    """Return the k-th highest score of each group, shape [groups, 1]."""
    return (_by_partition if scores_GN.device.type == "cpu" else _by_topk)(scores_GN, k)


def _by_partition(scores_GN: Tensor, k: int) -> Tensor:
    """Is many times faster on a processor than torch's topk and kthvalue, which carry indices along."""
    place = scores_GN.shape[1] - k
    return torch.from_numpy(np.partition(scores_GN.numpy(), place, axis=1)[:, place : place + 1])


def _by_topk(scores_GN: Tensor, k: int) -> Tensor:
    return scores_GN.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def _drop_first_ties(mask_GN: Tensor, scores_GN: Tensor, threshold_G1: Tensor, k: int) -> None:
    """Take the first of the entries that are equal to the threshold from groups of which more than k are picked."""
    counts_G = torch.count_nonzero(mask_GN, dim=1)
    crowded = torch.nonzero(counts_G > k).squeeze(1)
    group, entry = torch.nonzero(scores_GN[crowded] == threshold_G1[crowded], as_tuple=True)
    ties_G = torch.bincount(group, minlength=len(crowded))
    rank = torch.arange(len(group), device=group.device) - (ties_G.cumsum(0) - ties_G)[group]
    dropped = rank < (counts_G[crowded] - k)[group]
    mask_GN[crowded[group[dropped]], entry[dropped]] = False


@dataclass(frozen=True)
class Request:
    """What is to be picked.

    Attributes:
        alpha: The fraction, 0 to 1.
        scope: What is ranked together: a row, a matrix, all matrices of a decoder layer, or all matrices.
        rounding: How a fraction becomes a count.
        without_evidence: Whether entries of score 0 may be picked; an alpha of 1 picks them always.
    """

    alpha: float
    scope: Scope
    rounding: Rounding
    without_evidence: bool

    def count(self, entries: int) -> int:
        """Return how many of entries that are ranked together are picked."""
        return count(entries, self.alpha, self.rounding)


@dataclass(frozen=True)
class Selection:
    """Which entries of each site are picked.

    Attributes:
        request: What was asked for.
        cuts: Where each site is cut, where matrices are ranked whole.
    """

    request: Request
    cuts: Mapping[str, Cut]

    def mask(self, site: Site, scores_OI: Tensor) -> Tensor:
        """Return the boolean mask of a site's picked entries, shape [rows, columns].

        Raises:
            UserError: A score is NaN.
        """
        if tuple(scores_OI.shape) != site.shape:
            raise DefectError(f"{site.name}: {_UNFIT}")
        return self.picker(site).mask(scores_OI)

    def picker(self, site: Site) -> Picker:
        """Return what picks a site's entries, some rows at a time."""
        return Picker(self.request, site, self.cuts.get(site.name))

    def most(self, sites: Sequence[Site], item_bytes: Mapping[str, int]) -> int:
        """Return how many bytes the picked entries of sites take at most, by the size of an entry of each."""
        total = 0
        for members in _groups(sites, self.request.scope):
            picked = self.request.count(sum(site.shape[0] * site.shape[1] for site in members))
            if self.request.scope == "row":
                picked = sum(site.shape[0] * self.request.count(site.shape[1]) for site in members)
            total += picked * max(item_bytes[site.name] for site in members)
        return total


class Picker:
    """Picks one site's entries from its scores, which come in consecutive blocks of rows.

    Args:
        request: What is to be picked.
        site: The site.
        cut: Where it is cut; None where rows are ranked apart.
    """

    def __init__(self, request: Request, site: Site, cut: Cut | None) -> None:
        self._request, self._site = request, site
        self._cutter = None if cut is None else Cutter(cut)

    def mask(self, scores_OI: Tensor) -> Tensor:
        """Return the boolean mask of what is picked of the next rows.

        Raises:
            UserError: A score is NaN.
        """
        scores_OI = checked(self._site, scores_OI)
        if self._cutter is None:
            mask_OI = top_entries(scores_OI, self._request.count(self._site.shape[1]))
        else:
            mask_OI = self._cutter.mask(scores_OI)
        every_entry = self._request.without_evidence or self._request.alpha == 1
        return mask_OI if every_entry else mask_OI & (scores_OI > 0)


def select(sites: Sequence[Site], score: Score, request: Request) -> Selection:
    """Prepare to pick the top fraction of the entries of every group that the scope ranks apart.

    Args:
        sites: In network order, which is the order in which ties across matrices are told apart.
        score: Returns consecutive blocks of rows of a site's non-negative scores, [rows, columns], of the same type for
            all; called two to five times for each site where matrices are ranked whole, else never.
        request: What is to be picked.

    Raises:
        UserError: A score is NaN.
    """
    return select_many(sites, score, [request])[0]


def select_many(sites: Sequence[Site], score: Score, requests: Sequence[Request]) -> list[Selection]:
    """Do as :func:`select` for several requests, asking for each score as often as for the most demanding of them."""
    rankings: dict[Scope, list[Ranking]] = {
        scope: [Ranking(members, _counts(members, scope, requests)) for members in _groups(sites, scope)]
        for scope in dict.fromkeys(request.scope for request in requests)
        if scope != "row"
    }
    of_site: dict[str, list[Ranking]] = {site.name: [] for site in sites}
    for ranking in (ranking for found in rankings.values() for ranking in found):
        for site in ranking.sites:
            of_site[site.name].append(ranking)
    while any(not ranking.finished for found in rankings.values() for ranking in found):
        for site in sites:
            _show(site, score, [ranking for ranking in of_site[site.name] if not ranking.finished])
    return [_selection(request, rankings.get(request.scope, [])) for request in requests]


def _counts(members: Sequence[Site], scope: Scope, requests: Sequence[Request]) -> list[int]:
    entries = sum(site.shape[0] * site.shape[1] for site in members)
    return [request.count(entries) for request in requests if request.scope == scope]


def _selection(request: Request, rankings: Sequence[Ranking]) -> Selection:
    cuts: dict[str, Cut] = {}
    for ranking in rankings:
        cuts |= ranking.cuts(request.count(ranking.entries))
    return Selection(request, cuts)


def _show(site: Site, score: Score, rankings: Sequence[Ranking]) -> None:
    """Show a site's scores to every ranking that waits for them."""
    if not rankings:
        return
    rows = 0
    for block_OI in score(site):
        rows += len(block_OI)
        scores = ScoreBits(checked(site, block_OI))
        wanted = [ranking.leading for ranking in rankings]
        some = sorted({digit for leading in wanted if leading is not None for digit in leading})
        few = scores.within(some) if some else scores
        for ranking, leading in zip(rankings, wanted, strict=True):
            ranking.add(site, scores if leading is None else few)
    if rows != site.shape[0]:
        raise DefectError(f"{site.name}: {_UNFIT}")
    for ranking in rankings:
        ranking.leave(site)


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


def _groups(sites: Sequence[Site], scope: Scope) -> list[list[Site]]:
    groups: dict[Hashable, list[Site]] = {}
    for site in sites:
        key = site.name if scope in ("row", "matrix") else site.layer if scope == "layer" else None
        groups.setdefault(key, []).append(site)
    return list(groups.values())
