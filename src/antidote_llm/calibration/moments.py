"""What a site's input looked like on a data set: sums that serve every statistic, alpha and scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from antidote_llm.errors import DefectError

Statistic: TypeAlias = Literal["rms", "mean_norm", "token_rms"]
TokenPolicy: TypeAlias = Literal["all", "prompt", "response"]


@dataclass(frozen=True)
class SiteMoments:
    """Sums over one site's input x, per input column; x_t is a counted token of row n.

    Attributes:
        sum_squares_I: float64, the sum over rows and tokens of x squared.
        sum_norms_I: float64, the sum over rows of the L2 norm over the row's tokens.
        tokens: How many counted tokens the site saw; of an expert's matrix, those that were sent there.
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
        sha256: The hash over everything that they depend on.
    """

    sites: Mapping[str, SiteMoments]
    rows: int
    tokens: int
    sha256: str

    def input_norm(self, site: str, statistic: Statistic) -> Tensor:
        """Return the norm of every input column of a site, float64, shape [columns].

        ``rms`` is the root mean square over rows of the row's norm, as the published code computes it; ``mean_norm``
        is the mean of the rows' norms, Eq. 1 of the paper (arXiv 2408.09600); ``token_rms`` is the root mean square
        over tokens. All divide by the rows or tokens of the whole data set, those of an expert too: ranked with other
        matrices, an expert that few tokens are sent to counts for less.

        Raises:
            DefectError: The site was not observed.
        """
        moments = self.sites.get(site)
        if moments is None:
            raise DefectError(f"no statistics were collected for {site}")
        if statistic == "mean_norm":
            return moments.sum_norms_I / self.rows
        return torch.sqrt(moments.sum_squares_I / (self.rows if statistic == "rms" else self.tokens))
