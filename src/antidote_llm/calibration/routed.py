"""Sums over the inputs of experts: each expert sees the tokens that the router sends to it, and has sums of its own.

Legend: B rows of a batch, T positions, S tokens that one expert sees, R rows that they are of, I input columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from antidote_llm.calibration.sums import Sums
from antidote_llm.errors import UserError
from antidote_llm.models.experts import ExpertInlet, observed_experts
from antidote_llm.models.sites import Site


def is_routed(site: Site) -> bool:
    """Whether a site's input is what a router sends to an expert."""
    return any(isinstance(module, ExpertInlet) for module in site.observed)


@contextmanager
def experts_seen(model: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Let the inputs of experts be seen for the length of the block, where any of the sites needs that.

    Args:
        model: What computes.
        sites: All that is observed of it, in whichever layer: engines that run layers one by one must agree on it.
    """
    if any(map(is_routed, sites)):
        with observed_experts(model):
            yield
    else:
        yield


class RoutedInputs:
    """Hands the inputs of experts to sums while a model runs.

    Args:
        sites: Whatever is observed; those of experts are found among them.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.inlets: dict[ExpertInlet, dict[int, list[Site]]] = {}
        for site in sites:
            for module in site.observed:
                if isinstance(module, ExpertInlet) and site.expert is not None:
                    self.inlets.setdefault(module, {}).setdefault(site.expert, []).append(site)
        self._sums = Sums()
        self._counted_BT = torch.empty(0)
        self._wanted: dict[ExpertInlet, int] = {}
        self._passed: dict[ExpertInlet, int] = {}
        self._counted: dict[ExpertInlet, int] = {}

    def start(self, counted_BT: Tensor, sums: Sums) -> None:
        """Begin a forward pass, of which the marked positions count."""
        self._sums, self._counted_BT = sums, counted_BT
        self._wanted.clear()
        self._passed, self._counted = dict.fromkeys(self.inlets, 0), dict.fromkeys(self.inlets, 0)

    def hooks(self, done: Callable[[], None]) -> list[RemovableHandle]:
        """Hook every inlet.

        Args:
            done: Called when an inlet has seen all that it will see in a forward pass.
        """

        def hook(inlet: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(inlet, ExpertInlet)
            if self.observe(inlet, *args):
                done()

        return [inlet.register_forward_pre_hook(hook) for inlet in self.inlets]

    def observe(self, inlet: ExpertInlet, input_SI: Tensor, source_S: Tensor, expert: int, choices: int) -> bool:
        """Add what goes into one expert's matrix, and say whether the inlet has now seen every token.

        Args:
            inlet: Where it was seen.
            input_SI: The rows.
            source_S: Which token each is of.
            expert: Which expert's it is.
            choices: How many experts every token is sent to.
        """
        counted_S = self._counted_BT.reshape(-1).to(source_S.device)[source_S]
        tokens = int(counted_S.sum())
        self._wanted[inlet] = choices
        self._passed[inlet] += len(source_S)
        self._counted[inlet] += tokens
        if names := [site.name for site in self.inlets[inlet].get(expert, ())]:
            squares_RI = squares_of_rows(input_SI, counted_S, source_S // self._counted_BT.shape[1])
            sum_squares_I = squares_RI.double().sum(dim=0)
            sum_norms_I = squares_RI.double().sqrt().sum(dim=0)
            for name in names:
                self._sums.add(name, sum_squares_I, sum_norms_I, tokens)
        return self._passed[inlet] == self._counted_BT.numel() * choices

    def finish(self) -> None:
        """End a forward pass: an expert that saw nothing has sums of zero.

        Raises:
            UserError: The experts of a module did not see every counted token as often as the router sends it.
        """
        counted = int(self._counted_BT.sum())
        for inlet, sites in self.inlets.items():
            some = next(site for each in sites.values() for site in each)
            wanted = counted * self._wanted.get(inlet, 1)
            if self._counted[inlet] != wanted or self._passed[inlet] == 0:
                raise UserError(
                    f"{some.name}: all experts saw {self._counted[inlet]} of {wanted} tokens in a forward pass: the "
                    "model computes them in another way, or more than once: leave it out of --sites"
                )
            for site in (site for each in sites.values() for site in each):
                if site.name not in self._sums.tokens:
                    nothing_I = torch.zeros(site.shape[1], dtype=torch.float64, device=self._counted_BT.device)
                    self._sums.add(site.name, nothing_I, nothing_I, 0)


def squares_of_rows(input_SI: Tensor, counted_S: Tensor, row_S: Tensor) -> Tensor:
    """Return the sums of squares over the counted tokens of each row that has any here, shape [R, I].

    Args:
        input_SI: An expert's input.
        counted_S: Which of it counts.
        row_S: The row of each token; ascending.
    """
    wide_SI = input_SI if input_SI.dtype == torch.float64 else input_SI.float()
    squares_SI = wide_SI.masked_fill(~counted_S.unsqueeze(-1), 0).square()
    _, lengths_R = torch.unique_consecutive(row_S, return_counts=True)
    return torch.stack([part_SI.sum(dim=0) for part_SI in torch.split(squares_SI, lengths_R.tolist())])
