"""The size of an update as a Frobenius norm: of s B A without ever forming it, of a matrix block by block.

Legend: O outputs, R rank, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from antidote_llm.io.torch_tensors import flat_blocks
from antidote_llm.models.sites import Site


def squared_norm(values: Tensor) -> float:
    """Return the sum of squares, a block at a time, in float32 (float64 where the values are) and then in float64."""
    return math.fsum(_sum_of_squares(_wide(block)) for block in flat_blocks(values))


class UpdateNorms:
    """Adds up the norms of modules' updates, one site, or a block of its rows, at a time."""

    def __init__(self) -> None:
        self._squared: dict[str, list[float]] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._lone_factors: dict[tuple[str, int | None], Tensor] = {}

    def add(self, site: Site, values_OI: Tensor, reference_OI: Tensor | None) -> None:
        """Add the next rows of a site's matrix; an adapter's module is complete when both of its factors have come."""
        if site.role == "weight":
            self._squared.setdefault(site.module, []).append(squared_difference(values_OI, reference_OI))
            return
        rows = self._rows.setdefault(site.name, [])
        rows.append(values_OI)
        if sum(map(len, rows)) == site.shape[0]:
            self._add_factor(site, torch.cat(self._rows.pop(site.name)))

    def _add_factor(self, site: Site, values_OI: Tensor) -> None:
        place = (site.module, site.expert)
        if (partner := self._lone_factors.pop(place, None)) is None:
            self._lone_factors[place] = values_OI
            return
        a_RI, b_OR = (partner, values_OI) if site.role == "lora_B" else (values_OI, partner)
        squared = site.scaling**2 * _squared_product(b_OR.double(), a_RI.double())
        self._squared.setdefault(site.module, []).append(squared)

    def norms(self) -> dict[str, float]:
        """Return the norm of every module that is complete."""
        return {module: math.sqrt(max(math.fsum(squared), 0.0)) for module, squared in self._squared.items()}


def squared_difference(values: Tensor, reference: Tensor | None) -> float:
    """Return the squared norm of values minus reference, as :func:`squared_norm` does."""
    if reference is None:
        return squared_norm(values)
    blocks = zip(flat_blocks(values), flat_blocks(reference), strict=True)
    return math.fsum(_sum_of_squares(_wide(one) - _wide(other)) for one, other in blocks)


def _sum_of_squares(block: Tensor) -> float:
    total = float(torch.sum(block * block))
    return total if math.isfinite(total) else float(torch.sum(block.double().square()))


def _wide(block: Tensor) -> Tensor:
    return block if block.dtype == torch.float64 else block.float()


def _squared_product(b_OR: Tensor, a_RI: Tensor) -> float:
    """``||B A||^2 = sum((B^T B) * (A A^T))`` needs matrices of rank by rank only."""
    return float(torch.sum((b_OR.T @ b_OR) * (a_RI @ a_RI.T)))


def total_norm(norms: Mapping[str, float] | Iterable[float]) -> float:
    """Return the Frobenius norm of all updates together."""
    values = norms.values() if isinstance(norms, Mapping) else norms
    return math.sqrt(math.fsum(norm * norm for norm in values))
