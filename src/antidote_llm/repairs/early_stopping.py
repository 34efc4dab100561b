"""Stops collecting statistics once the mask has settled: ``--calibration auto``.

Legend: D bootstrap draws, I input columns of a site, O rows of a matrix, R rows ranked, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.stats import t as student
from torch import Tensor

from antidote_llm.calibration.batching import OnSquares
from antidote_llm.calibration.collect import Collection
from antidote_llm.calibration.input_hooks import is_routed
from antidote_llm.calibration.moments import MomentAccumulator, Moments
from antidote_llm.errors import DefectError, UserError, setting
from antidote_llm.io.processes import process_count
from antidote_llm.models.sites import Site
from antidote_llm.repairs.method import ColumnScore
from antidote_llm.repairs.selection import Request, kth_highest, ranked_together

_FEWEST_CANDIDATES = 8


class ColumnNorms(Protocol):
    """The norms that a mask is made from, and those of bootstrap draws; both to the score's power."""

    def norms(self, site: str) -> Tensor:
        """Return a site's norms, float32, shape [columns]."""
        ...

    def factors(self, site: str) -> Tensor:
        """Return what each draw multiplies them by, float32, shape [draws, columns]."""
        ...


@dataclass(frozen=True)
class RankedRows:
    """A sample of one matrix's rows: how far each entry is from where a removed one goes, shape [R, I]."""

    site: Site
    update_RI: Tensor


@dataclass(frozen=True)
class MaskChange:
    """How the mask of a group that is ranked together changes under the draws.

    Attributes:
        selected: How many of its entries are in the mask.
        lost_D: How many of those are not in the mask of each draw; as many others are.
        lost_R: How many of those in each matrix row, on average over the draws.
    """

    selected: int
    lost_D: Tensor
    lost_R: Tensor


def sampled_rows(
    sites: Sequence[Site], update: Callable[[Site], Tensor], entries: int, start: float
) -> tuple[list[RankedRows], float]:
    """Read evenly spaced rows of all matrices (a systematic sample), and return which share of all rows they are.

    Args:
        sites: The matrices.
        update: Returns how far each entry of a site is from where a removed one goes, shape [O, I].
        entries: About how many entries are read; all if there are fewer.
        start: The offset of the first row in its interval, 0 to 1.
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


def mask_changes(ranked: Sequence[RankedRows], request: Request, norms: ColumnNorms) -> Iterator[MaskChange]:
    """Yield how the mask of every group changes."""
    if request.scope == "row":
        for found in ranked:
            yield _by_row(found, request, norms)
        return
    rows = {found.site.name: found for found in ranked}
    for group in ranked_together([found.site for found in ranked], request.scope):
        yield _together([rows[site.name] for site in group], request, norms)


def _by_row(found: RankedRows, request: Request, norms: ColumnNorms) -> MaskChange:
    scores_RI = found.update_RI * norms.norms(found.site.name)
    columns = scores_RI.shape[1]
    count = request.count(columns)
    inside, outside = _window(count, columns)
    top = scores_RI.topk(count + outside, dim=1)
    selected = int((top.values[:, :count] > 0).sum())
    scores_RC, place_RC = top.values[:, count - inside :], top.indices[:, count - inside :]
    changed_DRC = scores_RC * norms.factors(found.site.name)[:, place_RC]
    lost_DRC = _lost(scores_RC, changed_DRC, inside)
    return MaskChange(selected, lost_DRC.sum(dim=(1, 2)), lost_DRC.sum(dim=2).float().mean(dim=0))


def _together(members: Sequence[RankedRows], request: Request, norms: ColumnNorms) -> MaskChange:
    scores_N = torch.cat([(found.update_RI * norms.norms(found.site.name)).flatten() for found in members])
    entries = sum(found.site.shape[0] * found.site.shape[1] for found in members)
    count = round(request.count(entries) / entries * len(scores_N))
    inside, outside = _window(count, len(scores_N))
    top = scores_N.topk(count + outside)
    selected = int((top.values[:count] > 0).sum())
    scores_C, place_C = top.values[count - inside :], top.indices[count - inside :]
    changed_DC, row_C = torch.empty(0), torch.empty_like(place_C)
    first, first_row = 0, 0
    for found in members:
        rows, columns = found.update_RI.shape
        mine_C = (place_C >= first) & (place_C < first + rows * columns)
        factors_DI, place_M = norms.factors(found.site.name), place_C[mine_C] - first
        if not changed_DC.numel():
            changed_DC = torch.empty(len(factors_DI), len(scores_C))
        changed_DC[:, mine_C] = scores_C[mine_C] * factors_DI[:, place_M % columns]
        row_C[mine_C] = first_row + place_M // columns
        first, first_row = first + rows * columns, first_row + rows
    lost_DC = _lost(scores_C, changed_DC, inside)
    lost_R = torch.zeros(first_row).index_add(0, row_C[:inside], lost_DC.float().mean(dim=0))
    return MaskChange(selected, lost_DC.sum(dim=1), lost_R)


def _window(count: int, entries: int) -> tuple[int, int]:
    """Return how many entries on either side of the threshold may cross it."""
    near = max(_FEWEST_CANDIDATES, count // 2)
    return min(count, near), min(entries - count, near)


def _lost(scores_RC: Tensor, changed_DRC: Tensor, inside: int) -> Tensor:
    """Return which of the first ``inside`` candidates of each group of C are no longer among its ``inside`` highest."""
    candidates = scores_RC.shape[-1]
    if inside == 0 or inside == candidates:
        return torch.zeros(*changed_DRC.shape[:-1], inside, dtype=torch.bool)
    lowest = kth_highest(changed_DRC.reshape(-1, candidates), inside).reshape(*changed_DRC.shape[:-1], 1)
    return (changed_DRC[..., :inside] < lowest) & (scores_RC[..., :inside] > 0)


# The probability with which the reported bound holds, and the number of bootstrap draws.
_CONFIDENCE = 0.95
_DRAWS = 64
_FIRST_ROWS = 32
# A look is planned for a little more than the forecast: a near miss costs another look.
_MARGIN = 1.03
_LEAST_GROWTH = 1.05


@dataclass(frozen=True)
class Agreement:
    """How well the mask of the rows seen agrees with the mask of all rows, as Jaccard indices.

    Attributes:
        rows: How many rows were seen.
        of_rows: How many there are.
        looks: How many looks there were so far, this one included.
        estimate: 1 minus the geometric mean, over the draws, of what their Jaccard index lacks to 1.
        bound: The lower bound of the agreement, with 95 % confidence over all looks together.
        settled: Whether the bound reaches the target.
    """

    rows: int
    of_rows: int
    looks: int
    estimate: float
    bound: float
    settled: bool


class StoppingRule:
    """Decides after some rows of a data set whether the mask has settled, by a multiplier bootstrap. Deterministic.

    Use: run the rows of :meth:`next_rows`, give every input's sums by row to :meth:`add`, then :meth:`look`; again
    until it has settled.

    It holds 65 float32 vectors of each input's width, and a sample of about ``entries`` entries of the
    matrices; a look costs about ``64 * entries`` times the fraction selected.

    Args:
        sites: The matrices that are ranked, in the order of the network.
        update: Returns how far each entry of a site is from where a removed one goes, shape [rows, columns].
        request: Which scores become the mask.
        score: The score.
        rows: How many rows the data set has.
        target: The agreement that is enough.
        seed: Draws the order of rows, the bootstrap's weights and the sample of entries.
        entries: About how many entries of the matrices are ranked at a look.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        update: Callable[[Site], Tensor],
        request: Request,
        score: ColumnScore,
        *,
        rows: int,
        target: float = 0.95,
        seed: int = 0,
        entries: int = 1 << 20,
    ) -> None:
        self._request, self._of_rows, self._target = request, rows, target
        self._power = score.norm_power * (1.0 if score.statistic == "mean_norm" else 0.5)
        chance = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(rows, generator=chance).tolist()
        self._weights_DN = torch.randn(_DRAWS, rows, generator=chance)
        start = float(torch.rand((), generator=chance))
        self._ranked, self._share = sampled_rows(sites, update, entries, start)
        self._sums_DI: dict[str, Tensor] = {}
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
            sums_BI: For each row the sum of squares over its tokens, or the root of it if the statistic is
                ``mean_norm``.
        """
        weights_DB = self._weights_DN[:, list(rows)].to(sums_BI.device)
        # The last line sums the rows themselves.
        sums_DI = torch.cat([weights_DB, torch.ones_like(weights_DB[:1])]) @ sums_BI.float()
        if sites[0] in self._sums_DI:
            sums_DI += self._sums_DI[sites[0]]
        for site in sites:
            self._sums_DI[site] = sums_DI
            self._added[site] += len(rows)

    def look(self) -> Agreement:
        """Compare the mask of the rows seen with the masks of the draws, and plan the next rows.

        Raises:
            DefectError: A site lacks rows, or has too many.
        """
        missing = [name for name, added in self._added.items() if added != self._next]
        if missing:
            raise DefectError(f"{missing[0]} was given {self._added[missing[0]]} of {self._next} rows")
        self._seen, self._looks = self._next, self._looks + 1
        mean, error = (1.0, 0.0) if self._seen == self._of_rows else self._simulated()
        # If the mean is below the target, so is the bound, and this look spends no risk.
        self._chances += mean >= self._target
        bound = self._bound(mean, error, max(1, self._chances))
        settled = bound >= self._target
        if not settled:
            self._next = self._planned(self._bound(mean, error, self._chances + 1))
        return Agreement(self._seen, self._of_rows, self._looks, mean, bound, settled)

    def _simulated(self) -> tuple[float, float]:
        """Return the agreement over the draws, and the relative standard error of what it lacks to 1.

        1 - J is right-skewed: its logarithm is used.
        """
        found = list(mask_changes(self._ranked, self._request, self))
        selected = sum(each.selected for each in found)
        lost_D = torch.stack([each.lost_D for each in found]).sum(dim=0)
        lost_R = torch.cat([each.lost_R for each in found])
        if selected == 0 or not bool(lost_D.any()):
            return 1.0, 0.0
        spread = float((lost_D + 0.5).log().std()) * math.sqrt(1 + 1 / len(lost_D))
        # The sampling error of the matrix rows.
        unseen = float(lost_R.std(correction=0) / lost_R.mean()) * math.sqrt((1 - self._share) / len(lost_R))
        lost = float((lost_D + 0.5).log().mean().exp())
        return (selected - lost) / (selected + lost), math.hypot(spread, unseen)

    def _bound(self, mean: float, error: float, chance: int) -> float:
        """Return the bound at a chance to stop.

        The risk is spent as 1 / j^2, whose sum is pi^2 / 6, so that any number of chances is allowed for.
        """
        if mean == 1:
            # Also when a single row was all there is, for which Student's quantile is not defined.
            return 1.0
        level = (1 - _CONFIDENCE) * 6 / (math.pi * chance) ** 2
        errors = float(student.ppf(1 - level, min(len(self._weights_DN), self._seen) - 1))
        return max(0.0, 1 - (1 - mean) * math.exp(errors * error))

    def norms(self, site: str) -> Tensor:
        """Return a site's column norms over the rows seen, up to a factor, to the score's power, shape [I]."""
        return ((self._sums_DI[site][-1].double() / self._seen) ** self._power).float().cpu()

    def factors(self, site: str) -> Tensor:
        """Return what each simulated full set multiplies them by, shape [D, I]."""
        sums_DI = self._sums_DI[site].double().cpu()
        mean_I = sums_DI[-1] / self._seen
        weights_D = self._weights_DN[:, self._order[: self._seen]].double().sum(dim=1)
        off_DI = (sums_DI[:-1] - weights_D[:, None] * mean_I) / self._seen
        off_DI *= math.sqrt((1 - self._seen / self._of_rows) * self._seen / (self._seen - 1))
        relative_DI = torch.where(mean_I > 0, off_DI / mean_I, 0.0)
        return ((1 + relative_DI).clamp(min=0) ** self._power).float()

    def _planned(self, bound: float) -> int:
        """Forecast how many rows are enough: what the mask lacks shrinks as the standard error of a mean does."""
        n, of = self._seen, self._of_rows
        shrink = ((1 - self._target) / (1 - bound)) ** 2
        wanted = _MARGIN / (shrink * (1 / n - 1 / of) + 1 / of)
        return min(of, max(math.ceil(_LEAST_GROWTH * n), min(math.ceil(wanted), 2 * n)))


def collect_until_settled(
    collection: Collection,
    request: Request,
    score: ColumnScore,
    update: Callable[[Site], Tensor],
    *,
    progress: Callable[[int], None] | None = None,
    sweeps: int = 1,
) -> tuple[Moments, Agreement, Collection]:
    """Collect from more and more of the rows until the mask has settled.

    Args:
        collection: The collection from all rows.
        request: Which scores become the mask.
        score: The score.
        update: Returns how far each entry of a site is from where a removed one goes, shape [rows, columns].
        progress: Called with a number of rows, which add up to all rows.
        sweeps: As :meth:`Collection.by_part` takes it.

    Returns:
        The moments of the rows seen, how well their mask agrees with that of all rows, and the collection of these
        rows.

    Raises:
        UserError: A site cannot be looked at row by row.
    """
    _require_sums_by_row(collection.sites)
    rule = StoppingRule(collection.sites, update, request, score, rows=len(collection.rows))
    sums, seen = MomentAccumulator(), list[int]()
    while True:
        chosen = rule.next_rows()
        on_squares = _adding_to(rule, chosen, score)
        parts = collection.of_rows(chosen).by_part(cache=False, on_squares=on_squares, progress=progress, sweeps=sweeps)
        for _, moments in parts:
            for name, found in moments.sites.items():
                sums.add(name, found.sum_squares_I, found.sum_norms_I, found.tokens)
        seen += chosen
        agreement = rule.look()
        if agreement.settled or len(seen) == len(collection.rows):
            break
    if progress is not None:
        progress(len(collection.rows) - len(seen))
    whole = collection.of_rows(seen)
    moments = Moments(sums.moments([site.name for site in whole.sites]), len(seen), whole.tokens, whole.sha256)
    return moments, agreement, whole


def _adding_to(rule: StoppingRule, chosen: Sequence[int], score: ColumnScore) -> OnSquares:
    def on_squares(rows: Sequence[int], site_names: Sequence[str], squares_BI: Tensor) -> None:
        sums_BI = squares_BI.sqrt() if score.statistic == "mean_norm" else squares_BI
        rule.add(site_names, [chosen[row] for row in rows], sums_BI)

    return on_squares


def _require_sums_by_row(sites: Sequence[Site]) -> None:
    auto = f"{setting('calibration')} auto"
    if process_count() > 1:
        raise UserError(f"{auto} looks at all rows together: run it in one process, or use all")
    for site in sites:
        if is_routed(site) or len(site.observed) > 1:
            raise UserError(
                f"{auto}: {site.name} sees only some rows, or is used in several places: pass "
                f"{setting('calibration')} all, or leave it out of {setting('sites')}"
            )
