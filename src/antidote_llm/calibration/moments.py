"""What a site's input looked like on a data set: sums that serve every statistic, alpha and scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from antidote_llm.choices import Statistic
from antidote_llm.errors import DefectError


@dataclass(frozen=True)
class SiteMoments:
    """Sums over one site's input x, per input column; x_t is a counted token of row n.

    Attributes:
        sum_squares_I: float64, the sum over rows and tokens of x squared.
        sum_norms_I: float64, the sum over rows of the L2 norm over the row's tokens.
        tokens: How many counted tokens the site saw: for an expert's matrix, those routed to it.
    """

    sum_squares_I: Tensor
    sum_norms_I: Tensor
    tokens: int


@dataclass(frozen=True)
class Moments:
    """The moments of every site on one data set.

    Attributes:
        sites: By site name.
        rows: How many rows had a counted token.
        tokens: How many tokens were counted.
        sha256: The hash of everything that they depend on.
    """

    sites: Mapping[str, SiteMoments]
    rows: int
    tokens: int
    sha256: str

    def input_norm(self, site: str, statistic: Statistic) -> Tensor:
        """Return the norm of every input column of a site, float64, shape [columns].

        ``rms`` is the root mean square over rows of the row's norm, as the published code computes it; ``mean_norm``
        is the mean of the rows' norms, Eq. 1 of the paper (arXiv 2408.09600); ``token_rms`` is the root mean square
        over tokens. All divide by the rows or tokens of the whole data set, for experts too: ranked with other
        matrices, an expert that few tokens are routed to counts for less.

        Raises:
            DefectError: The site was not observed.
        """
        moments = self.sites.get(site)
        if moments is None:
            raise DefectError(f"no statistics were collected for {site}")
        if statistic == "mean_norm":
            return moments.sum_norms_I / self.rows
        return torch.sqrt(moments.sum_squares_I / (self.rows if statistic == "rms" else self.tokens))


class MomentAccumulator:
    """Sums of squares and of norms of every site's input, float64, on the device that computed them."""

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}

    def add(self, name: str, sum_squares_I: Tensor, sum_norms_I: Tensor, tokens: int) -> None:
        """Add the sums of one site over some tokens."""
        if name in self.tokens:
            self.squares[name] += sum_squares_I.to(self.squares[name].device)
            self.norms[name] += sum_norms_I.to(self.norms[name].device)
            self.tokens[name] += tokens
        else:
            self.squares[name], self.norms[name], self.tokens[name] = sum_squares_I.clone(), sum_norms_I.clone(), tokens

    def merge(self, other: MomentAccumulator) -> None:
        """Add another accumulator's sums."""
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
        """Return everything as tensors by name, for a file."""
        found = {}
        for name, tokens in self.tokens.items():
            found[f"{name}/sum_squares"] = self.squares[name].cpu()
            found[f"{name}/sum_norms"] = self.norms[name].cpu()
            found[f"{name}/tokens"] = torch.tensor(tokens)
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> MomentAccumulator:
        """Return the accumulator that :meth:`tensors` was called on."""
        sums = cls()
        for key in tensors:
            name, _, part = key.rpartition("/")
            if part == "tokens":
                tokens = int(tensors[key])
                sums.add(name, tensors[f"{name}/sum_squares"], tensors[f"{name}/sum_norms"], tokens)
        return sums
