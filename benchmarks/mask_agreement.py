"""Where a plan's masks differ from the published loop's, and by how little a score decided it.

Legend: O rows and I columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from antidote_llm.models.sites import Site
from antidote_llm.repairs.edits import Plan


@dataclass(frozen=True)
class Agreement:
    """How masks agree.

    Attributes:
        entries: How many entries there are.
        differing: How many of them are chosen by one and not by the other.
        largest_gap: How far the score of such an entry lies from its row's threshold at most, relatively: a few units
            of the last place mean that the order of additions decided.
    """

    entries: int
    differing: int
    largest_gap: float


@torch.no_grad()
def agreement(plan: Plan, published: Mapping[str, Tensor]) -> Agreement:
    """Compare the masks of a plan that ranks rows with masks by the name of the parameter."""
    entries, differing, largest_gap = 0, 0, 0.0
    for site in plan.problem.target.sites:
        chosen_OI = plan.edit(site).chosen_OI
        assert chosen_OI is not None
        other_OI = published[parameter_name(site)].bool()
        scores_OI = torch.cat(list(plan.problem.scores(site, plan.method, plan.settings)))
        threshold_O1 = scores_OI.where(chosen_OI, torch.inf).amin(dim=1, keepdim=True)
        apart_OI = chosen_OI != other_OI
        gap_OI = ((scores_OI - threshold_O1).abs() / threshold_O1).where(apart_OI, 0)
        entries += chosen_OI.numel()
        differing += int(apart_OI.sum())
        largest_gap = max(largest_gap, float(gap_OI.max()))
    return Agreement(entries, differing, largest_gap)


def parameter_name(site: Site) -> str:
    """Return what peft calls a factor of the adapter."""
    return f"base_model.model.{site.module}.{site.role}.default.weight"
