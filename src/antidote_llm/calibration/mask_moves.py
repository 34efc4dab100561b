"""How a mask moves when the norms of its columns do: on some rows of every matrix, near the threshold alone.

Legend: D draws, I input columns of a site, O rows of a matrix, R rows ranked, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from antidote_llm.calibration.moments import Statistic
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
