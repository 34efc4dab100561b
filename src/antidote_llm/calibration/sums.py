"""Sums over rows and tokens, by site, that are added up in shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from antidote_llm.calibration.moments import SiteMoments
from antidote_llm.errors import DefectError


class Sums:
    """Sums of squares and of norms of the input of every site, and how many tokens each saw.

    Everything is float64 and lies where it was first added.
    """

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}

    def add(self, name: str, sum_squares_I: Tensor, sum_norms_I: Tensor, tokens: int) -> None:
        """Add what a site saw."""
        if name in self.tokens:
            self.squares[name] += sum_squares_I.to(self.squares[name].device)
            self.norms[name] += sum_norms_I.to(self.norms[name].device)
            self.tokens[name] += tokens
        else:
            self.squares[name], self.norms[name], self.tokens[name] = sum_squares_I.clone(), sum_norms_I.clone(), tokens

    def merge(self, other: Sums) -> None:
        """Add what others saw."""
        for name, tokens in other.tokens.items():
            self.add(name, other.squares[name], other.norms[name], tokens)

    def moments(self, names: Sequence[str]) -> dict[str, SiteMoments]:
        """Return the moments of sites, on the CPU.

        Raises:
            DefectError: A site was never observed.
        """
        if missing := [name for name in names if name not in self.tokens]:
            raise DefectError(f"{missing[0]} was never observed")
        return {
            name: SiteMoments(self.squares[name].cpu(), self.norms[name].cpu(), self.tokens[name]) for name in names
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors by name, to be kept in a file."""
        found = {}
        for name, tokens in self.tokens.items():
            found[f"{name}/sum_squares"] = self.squares[name].cpu()
            found[f"{name}/sum_norms"] = self.norms[name].cpu()
            found[f"{name}/tokens"] = torch.tensor(tokens)
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Sums:
        """Return what :meth:`tensors` gave."""
        sums = cls()
        for key in tensors:
            name, _, part = key.rpartition("/")
            if part == "tokens":
                tokens = int(tensors[key])
                sums.add(name, tensors[f"{name}/sum_squares"], tensors[f"{name}/sum_norms"], tokens)
        return sums
