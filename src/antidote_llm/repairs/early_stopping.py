"""How a mask moves when the norms of its columns do: on some rows of every matrix, near the threshold alone.

Legend: D draws, I input columns of a site, O rows of a matrix, R rows ranked, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from antidote_llm.calibration.batching import Rows
from antidote_llm.calibration.collect import Collection
from antidote_llm.calibration.input_hooks import is_routed
from antidote_llm.calibration.moments import MomentAccumulator, Moments, Statistic
from antidote_llm.errors import DefectError, UserError
from antidote_llm.io.processes import process_count
from antidote_llm.models.sites import Site

RankedTogether: TypeAlias = Literal["row", "matrix", "layer", "global"]
_FEWEST_CANDIDATES = 8


@dataclass(frozen=True)
class Ranking:
    """How scores become a mask.

    Attributes:
        scope: What is ranked together: a row, a matrix, all matrices of a decoder layer, or all matrices.
        count: How many of so many entries are picked.
        statistic: How an input's norm is taken over rows; ``token_rms`` picks what ``rms`` does.
        norm_power: The power of the norm in a score.
    """

    scope: RankedTogether
    count: Callable[[int], int]
    statistic: Statistic = "rms"
    norm_power: int = 1


class ColumnNorms(Protocol):
    """The norms that a mask is made from, and other norms that it is compared under; both to the score's power."""

    def norms(self, site: str) -> Tensor:
        """Return a site's norms, float32, shape [columns]."""
        ...

    def factors(self, site: str) -> Tensor:
        """Return what each draw multiplies them by, float32, shape [draws, columns]."""
        ...


@dataclass(frozen=True)
class RankedRows:
    """Some rows of one matrix: how far each entry is from where a removed one goes, shape [R, I]."""

    site: Site
    update_RI: Tensor


@dataclass(frozen=True)
class Moves:
    """What a group of entries that are ranked together loses.

    Attributes:
        picked: How many of its entries are in the mask.
        lost_D: How many of those are not in the mask of each draw: as many others are then.
        lost_R: How many of those in each matrix row, on average over the draws.
    """

    picked: int
    lost_D: Tensor
    lost_R: Tensor


def drawn_rows(
    sites: Sequence[Site], update: Callable[[Site], Tensor], entries: int, start: float
) -> tuple[list[RankedRows], float]:
    """Read evenly spaced rows of all matrices, every row with the same chance, and return what share of all they are.

    Args:
        sites: The matrices.
        update: Returns how far each entry of a site is from where a removed one goes, shape [O, I].
        entries: How many entries are read, about; all where there are fewer.
        start: Where the first row falls in its stretch, 0 to 1.
    """
    step = max(1.0, sum(site.shape[0] * site.shape[1] for site in sites) / entries)
    found, before = [], 0
    for site in sites:
        first = math.ceil(before / step - start)
        last = math.ceil((before + site.shape[0]) / step - start)
        rows = [math.floor((index + start) * step) - before for index in range(first, last)]
        if step == 1:
            rows = list(range(site.shape[0]))
        if rows:
            found.append(RankedRows(site, update(site)[rows].abs().float()))
        before += site.shape[0]
    return found, 1 / step


def moves(ranked: Sequence[RankedRows], ranking: Ranking, norms: ColumnNorms) -> Iterator[Moves]:
    """Yield how the mask of every group that is ranked apart moves."""
    if ranking.scope == "row":
        for found in ranked:
            yield _by_row(found, ranking, norms)
        return
    groups: dict[Hashable, list[RankedRows]] = {}
    for found in ranked:
        keys: dict[str, Hashable] = {"matrix": found.site.name, "layer": found.site.layer, "global": None}
        groups.setdefault(keys[ranking.scope], []).append(found)
    for members in groups.values():
        yield _together(members, ranking, norms)


def _by_row(found: RankedRows, ranking: Ranking, norms: ColumnNorms) -> Moves:
    scores_RI = found.update_RI * norms.norms(found.site.name)
    columns = scores_RI.shape[1]
    picks = ranking.count(columns)
    inside, outside = _window(picks, columns)
    top = scores_RI.topk(picks + outside, dim=1)
    picked = int((top.values[:, :picks] > 0).sum())
    scores_RC, place_RC = top.values[:, picks - inside :], top.indices[:, picks - inside :]
    moved_DRC = scores_RC * norms.factors(found.site.name)[:, place_RC]
    lost_DRC = _lost(scores_RC, moved_DRC, inside)
    return Moves(picked, lost_DRC.sum(dim=(1, 2)), lost_DRC.sum(dim=2).float().mean(dim=0))


def _together(members: Sequence[RankedRows], ranking: Ranking, norms: ColumnNorms) -> Moves:
    scores_N = torch.cat([(found.update_RI * norms.norms(found.site.name)).flatten() for found in members])
    entries = sum(found.site.shape[0] * found.site.shape[1] for found in members)
    picks = round(ranking.count(entries) / entries * len(scores_N))
    inside, outside = _window(picks, len(scores_N))
    top = scores_N.topk(picks + outside)
    picked = int((top.values[:picks] > 0).sum())
    scores_C, place_C = top.values[picks - inside :], top.indices[picks - inside :]
    moved_DC, row_C = torch.empty(0), torch.empty_like(place_C)
    first, first_row = 0, 0
    for found in members:
        rows, columns = found.update_RI.shape
        mine_C = (place_C >= first) & (place_C < first + rows * columns)
        factors_DI, place_M = norms.factors(found.site.name), place_C[mine_C] - first
        if not moved_DC.numel():
            moved_DC = torch.empty(len(factors_DI), len(scores_C))
        moved_DC[:, mine_C] = scores_C[mine_C] * factors_DI[:, place_M % columns]
        row_C[mine_C] = first_row + place_M // columns
        first, first_row = first + rows * columns, first_row + rows
    lost_DC = _lost(scores_C, moved_DC, inside)
    lost_R = torch.zeros(first_row).index_add(0, row_C[:inside], lost_DC.float().mean(dim=0))
    return Moves(picked, lost_DC.sum(dim=1), lost_R)


def _window(picks: int, entries: int) -> tuple[int, int]:
    """Return how many entries on either side of the threshold may change sides."""
    near = max(_FEWEST_CANDIDATES, picks // 2)
    return min(picks, near), min(entries - picks, near)


def _lost(scores_RC: Tensor, moved_DRC: Tensor, inside: int) -> Tensor:
    """Return which of the first ``inside`` candidates of each group of C are no longer among its highest as many."""
    candidates = scores_RC.shape[-1]
    if inside == 0 or inside == candidates:
        return torch.zeros(*moved_DRC.shape[:-1], inside, dtype=torch.bool)
    place = candidates - inside
    least = torch.from_numpy(np.partition(moved_DRC.numpy(), place, axis=-1)[..., place : place + 1])
    return (moved_DRC[..., :inside] < least) & (scores_RC[..., :inside] > 0)


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


def collect_until_settled(
    collection: Collection,
    ranking: Ranking,
    update: Callable[[Site], Tensor],
    *,
    progress: Callable[[int], None] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Moments, Agreement, Collection]:
    """Collect from growing parts of the rows until the mask has settled.

    Args:
        collection: What would be collected from all rows.
        ranking: How scores become a mask.
        update: Returns how far each entry of a site is from where a removed one goes, shape [rows, columns].
        progress: Called with a number of rows, which come to all rows in the end.
        seed: Draws the order of the rows.
        **options: As :meth:`Collection.by_part` takes them.

    Returns:
        The moments of the rows seen, how well their mask agrees with that of all rows, and the collection of these
        rows.

    Raises:
        UserError: A site cannot be looked at row by row.
    """
    _require_rows_apart(collection.sites)
    settling = Settling(collection.sites, update, ranking, rows=len(collection.rows), seed=seed)
    sums, seen = MomentAccumulator(), list[int]()
    while True:
        chosen = settling.next_rows()
        part = collection.of_rows(chosen)
        places = {id(row): place for place, row in zip(chosen, part.rows, strict=True)}
        for _, moments in part.by_part(cache=False, heard=_adding(settling, places, ranking), **options):
            for name, found in moments.sites.items():
                sums.add(name, found.sum_squares_I, found.sum_norms_I, found.tokens)
        seen += chosen
        if progress is not None:
            progress(len(chosen))
        agreement = settling.look()
        if agreement.settled or len(seen) == len(collection.rows):
            break
    if progress is not None:
        progress(len(collection.rows) - len(seen))
    whole = collection.of_rows(seen)
    moments = Moments(sums.moments([site.name for site in whole.sites]), len(seen), whole.tokens, whole.sha256)
    return moments, agreement, whole


def _adding(
    settling: Settling, places: dict[int, int], ranking: Ranking
) -> Callable[[Rows, Sequence[str], Tensor], None]:
    def heard(rows: Rows, names: Sequence[str], squares_BI: Tensor) -> None:
        sums_BI = squares_BI.sqrt() if ranking.statistic == "mean_norm" else squares_BI
        settling.add(names, [places[id(row)] for row in rows], sums_BI)

    return heard


def _require_rows_apart(sites: Sequence[Site]) -> None:
    if process_count() > 1:
        raise UserError("--calibration auto looks at all rows together: run it in one process, or use all")
    for site in sites:
        if is_routed(site) or len(site.observed) > 1:
            raise UserError(
                f"--calibration auto: {site.name} sees only some rows, or is used in several places: pass "
                "--calibration all, or leave it out of --sites"
            )
