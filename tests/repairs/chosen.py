"""What a planned repair chooses."""

from __future__ import annotations

from torch import Tensor

from antidote_llm.repairs.edits import Plan
from antidote_llm.repairs.plan import PlannedRepair


def whole_plan(repair: PlannedRepair) -> Plan:
    """Return the plan of a repair that is planned for all sites at once."""
    (plan,) = repair.parts
    return plan


def chosen_masks(repair: PlannedRepair) -> dict[str, Tensor]:
    """Return the mask of chosen entries of every site."""
    found = {}
    for site in repair.target.sites:
        chosen = whole_plan(repair).edit(site).chosen_OI
        assert chosen is not None
        found[site.name] = chosen
    return found
