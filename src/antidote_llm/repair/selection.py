"""Picks the entries with the highest scores: exact counts, and ties that always fall the same way.

Legend: G groups that are ranked apart, N entries of a group, O rows and I columns of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from antidote_llm.errors import UserError
from antidote_llm.models.sites import Site

Scope: TypeAlias = Literal["row", "matrix", "layer", "global"]
Rounding: TypeAlias = Literal["nearest", "official"]


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
    threshold_G1 = scores_GN.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above_GN = scores_GN > threshold_G1
    tied_GN = scores_GN == threshold_G1
    wanted_G1 = k - above_GN.sum(dim=1, keepdim=True)
    rank_from_end_GN = tied_GN.flip(1).cumsum(dim=1).flip(1)
    return above_GN | (tied_GN & (rank_from_end_GN <= wanted_G1))


def select(
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    *,
    alpha: float,
    scope: Scope,
    rounding: Rounding,
    without_evidence: bool,
) -> dict[str, Tensor]:
    """Pick the top fraction of the entries of every group that the scope ranks apart.

    Args:
        sites: In network order, which is the order in which ties across matrices are told apart.
        scores: Non-negative float32 scores by site name, shape [rows, columns].
        alpha: The fraction, 0 to 1.
        scope: What is ranked together: a row, a matrix, all matrices of a decoder layer, or all matrices.
        rounding: How a fraction becomes a count.
        without_evidence: Whether entries of score 0 may be picked; an alpha of 1 picks them always.

    Returns:
        A boolean mask for every site, shape [rows, columns].

    Raises:
        UserError: A score is NaN.
    """
    for site in sites:
        if bool(torch.isnan(scores[site.name]).any()):
            raise UserError(f"{site.name}: a score is NaN: the adapter or its statistics are broken")
    if scope in ("row", "matrix"):
        masks = {}
        for site in sites:
            score_OI = scores[site.name]
            grouped_GN = score_OI if scope == "row" else score_OI.reshape(1, -1)
            masks[site.name] = top_entries(grouped_GN, count(grouped_GN.shape[1], alpha, rounding)).reshape(
                score_OI.shape
            )
    else:
        masks = _select_together(sites, scores, alpha, scope, rounding)
    if without_evidence or alpha == 1:
        return masks
    return {name: mask_OI & (scores[name] > 0) for name, mask_OI in masks.items()}


def _select_together(
    sites: Sequence[Site], scores: Mapping[str, Tensor], alpha: float, scope: Scope, rounding: Rounding
) -> dict[str, Tensor]:
    groups: dict[Hashable, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.layer if scope == "layer" else None, []).append(site)
    masks = {}
    for members in groups.values():
        flat_1N = torch.cat([scores[site.name].reshape(-1) for site in members]).unsqueeze(0)
        mask_N = top_entries(flat_1N, count(flat_1N.shape[1], alpha, rounding))[0]
        sizes = [scores[site.name].numel() for site in members]
        for site, part in zip(members, torch.split(mask_N, sizes), strict=True):
            masks[site.name] = part.reshape(scores[site.name].shape)
    return masks
