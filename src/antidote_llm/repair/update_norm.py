"""The size of an adapter's update, without ever forming it.

Legend: O outputs, R rank, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from antidote_llm.models.sites import Site


def update_norms(sites: Sequence[Site], weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the Frobenius norm of s B A for every adapted module.

    ``||B A||^2 = sum((B^T B) * (A A^T))`` needs matrices of rank by rank only.
    """
    factors: dict[str, dict[str, Site]] = {}
    for site in sites:
        factors.setdefault(site.module, {})[site.role] = site
    norms = {}
    for module, pair in factors.items():
        a_RI = weights[pair["lora_A"].name].double()
        b_OR = weights[pair["lora_B"].name].double()
        squared = float(((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum())
        norms[module] = abs(pair["lora_A"].scaling) * math.sqrt(max(squared, 0.0))
    return norms


def total_norm(norms: Mapping[str, float]) -> float:
    """Return the Frobenius norm of all updates together."""
    return math.sqrt(math.fsum(norm * norm for norm in norms.values()))
