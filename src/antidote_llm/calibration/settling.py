"""When enough rows were seen: bounds how far a mask can still move before every row of the data set was.

Rows are seen in an order drawn by lot, so that those seen are a simple random sample of the whole set. What their
column norms may still miss is simulated by a multiplier bootstrap with the correction for a finite population: a draw
moves the means of all columns together by a random combination of the rows' own deviations, which keeps every
correlation between columns and sites. Each draw's mask is compared with the mask of the rows seen.

Legend: B rows of a batch, D draws, I input columns of a site, R rows of matrices, C candidates of a ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from antidote_llm.calibration.mask_moves import Ranking, drawn_rows, moves
from antidote_llm.errors import DefectError
from antidote_llm.models.sites import Site

_FIRST_ROWS = 32
# A look is planned for a little more than the forecast asks for: a near miss costs another look.
_MARGIN = 1.03
_LEAST_GROWTH = 1.05


@dataclass(frozen=True)
class Agreement:
    """How well the mask of the rows seen agrees with the mask of all rows, as Jaccard indices.

    Attributes:
        rows: How many rows were seen.
        of_rows: How many there are.
        looks: How often was looked so far, this time included.
        estimate: The geometric mean of what the draws lack to 1, taken from 1.
        bound: What the agreement is at least, with the confidence asked for over all looks together.
        settled: Whether the bound reaches the target.
    """

    rows: int
    of_rows: int
    looks: int
    estimate: float
    bound: float
    settled: bool


class Settling:
    """Decides row by row of a data set whether the mask has settled. Deterministic for a seed.

    Use: run the rows of :meth:`next_rows`, hand every input's sums per row to :meth:`add`, then :meth:`look`; again
    until it has settled.

    What it holds is ``draws + 1`` float32 vectors an input of its width, and ``entries`` entries of the matrices, whose
    rows are drawn by lot where there are more; a look costs about ``draws * entries`` times the fraction picked.

    Args:
        sites: The matrices that are ranked, in the order of the network.
        update: Returns how far each entry of a site is from where a removed one goes, shape [rows, columns].
        ranking: How scores become a mask.
        rows: How many rows the data set has.
        target: The agreement that is enough.
        confidence: The probability with which the reported bound holds.
        seed: Draws the order of rows, the weights of the simulation and the sample of entries.
        draws: How many masks are simulated at each look.
        entries: How many entries of the matrices are ranked at a look, about.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        update: Callable[[Site], Tensor],
        ranking: Ranking,
        *,
        rows: int,
        target: float = 0.95,
        confidence: float = 0.95,
        seed: int = 0,
        draws: int = 64,
        entries: int = 1 << 20,
    ) -> None:
        self._ranking, self._of_rows, self._target, self._confidence = ranking, rows, target, confidence
        self._power = ranking.norm_power * (1.0 if ranking.statistic == "mean_norm" else 0.5)
        chance = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(rows, generator=chance).tolist()
        self._weights_DN = torch.randn(draws, rows, generator=chance)
        start = float(torch.rand((), generator=chance))
        self._ranked, self._share = drawn_rows(sites, update, entries, start)
        self._moved: dict[str, Tensor] = {}
        self._added: dict[str, int] = dict.fromkeys((site.name for site in sites), 0)
        self._seen, self._next, self._looks, self._chances = 0, min(_FIRST_ROWS, rows), 0, 0

    def next_rows(self) -> list[int]:
        """Return the indices of the rows to be seen before the next look."""
        return self._order[self._seen : self._next]

    def add(self, sites: Sequence[str], rows: Sequence[int], sums_BI: Tensor) -> None:
        """Add some rows' sums of one input, in any order and any parts.

        Args:
            sites: The names of the sites that share the input; the same for all rows.
            rows: The rows' indices in the data set.
            sums_BI: For each row the sum of squares over its tokens, or the root of it where the statistic is
                ``mean_norm``.
        """
        weights_DB = self._weights_DN[:, list(rows)].to(sums_BI.device)
        # The last line sums the rows themselves.
        moved_DI = torch.cat([weights_DB, torch.ones_like(weights_DB[:1])]) @ sums_BI.float()
        if sites[0] in self._moved:
            moved_DI += self._moved[sites[0]]
        for site in sites:
            self._moved[site] = moved_DI
            self._added[site] += len(rows)

    def look(self) -> Agreement:
        """Compare the mask of the rows seen with what the whole set may make of it, and plan the next rows.

        Raises:
            DefectError: A site lacks rows, or has too many.
        """
        missing = [name for name, added in self._added.items() if added != self._next]
        if missing:
            raise DefectError(f"{missing[0]} was given {self._added[missing[0]]} of {self._next} rows")
        self._seen, self._looks = self._next, self._looks + 1
        mean, error = (1.0, 0.0) if self._seen == self._of_rows else self._simulated()
        # Where the mean falls short the bound must, and nothing is risked.
        self._chances += mean >= self._target
        bound = self._bound(mean, error, max(1, self._chances))
        settled = bound >= self._target
        if not settled:
            self._next = self._planned(self._bound(mean, error, self._chances + 1))
        return Agreement(self._seen, self._of_rows, self._looks, mean, bound, settled)

    def _simulated(self) -> tuple[float, float]:
        """Return the agreement over the draws, and the relative standard error of what it lacks to 1.

        What is lacking is skewed, for a few common causes move it all: its logarithm is less so.
        """
        found = list(moves(self._ranked, self._ranking, self))
        picked = sum(each.picked for each in found)
        lost_D = torch.stack([each.lost_D for each in found]).sum(dim=0)
        lost_R = torch.cat([each.lost_R for each in found])
        if picked == 0 or not bool(lost_D.any()):
            return 1.0, 0.0
        spread = float((lost_D + 0.5).log().std()) * math.sqrt(1 + 1 / len(lost_D))
        # Matrix rows that were not ranked may lose more than those that were.
        unseen = float(lost_R.std(correction=0) / lost_R.mean()) * math.sqrt((1 - self._share) / len(lost_R))
        lost = float((lost_D + 0.5).log().mean().exp())
        return (picked - lost) / (picked + lost), math.hypot(spread, unseen)

    def _bound(self, mean: float, error: float, chance: int) -> float:
        """Return the bound at a chance to stop.

        The risk is spent as 1 / j^2, whose sum is pi^2 / 6, so that any number of chances is allowed for.
        """
        if mean == 1:
            # As when every row was seen, were it a single one.
            return 1.0
        level = (1 - self._confidence) * 6 / (math.pi * chance) ** 2
        errors = float(student.ppf(1 - level, min(len(self._weights_DN), self._seen) - 1))
        return max(0.0, 1 - (1 - mean) * math.exp(errors * error))

    def norms(self, site: str) -> Tensor:
        """Return a site's column norms over the rows seen, up to a factor, to the score's power, shape [I]."""
        return ((self._moved[site][-1].double() / self._seen) ** self._power).float().cpu()

    def factors(self, site: str) -> Tensor:
        """Return what each simulated full set multiplies them by, shape [D, I]."""
        moved_DI = self._moved[site].double().cpu()
        mean_I = moved_DI[-1] / self._seen
        weights_D = self._weights_DN[:, self._order[: self._seen]].double().sum(dim=1)
        off_DI = (moved_DI[:-1] - weights_D[:, None] * mean_I) / self._seen
        off_DI *= math.sqrt((1 - self._seen / self._of_rows) * self._seen / (self._seen - 1))
        relative_DI = torch.where(mean_I > 0, off_DI / mean_I, 0.0)
        return ((1 + relative_DI).clamp(min=0) ** self._power).float()

    def _planned(self, bound: float) -> int:
        """Forecast how many rows are enough: what the mask misses shrinks as the standard error of a mean does."""
        n, of = self._seen, self._of_rows
        shrink = ((1 - self._target) / (1 - bound)) ** 2
        wanted = _MARGIN / (shrink * (1 / n - 1 / of) + 1 / of)
        return min(of, max(math.ceil(_LEAST_GROWTH * n), min(math.ceil(wanted), 2 * n)))
