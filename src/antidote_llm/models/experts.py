"""Experts whose matrices the model keeps in one tensor: their stacks, and a forward that hooks can observe.

transformers computes a mixture of experts without a module for each expert, so that no hook sees its input.
The forward here computes the same function expert by expert, and calls an inlet, a module that can be hooked, with
every input.

Legend: N tokens, K experts that each is sent to, S = N K rows, D hidden size, F inner size, O outputs, I inputs,
E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antidote_llm.errors import DefectError
from antidote_llm.models.transformers_private import computed_by, dispatched_experts, gated

_IMPLEMENTATION = "antidote_observed"
_INLETS = "observed_inputs"


class ExpertInlet(nn.Module):
    """Is called with every expert's input of one stack while experts are observed: hooks are attached to it."""

    def forward(self, input_SI: Tensor, source_S: Tensor, expert: int, choices: int) -> None:
        """Do nothing.

        Args:
            input_SI: The rows that go into one expert's matrix.
            source_S: Which token each row is of, counted through the rows of the batch; ascending.
            expert: Which expert.
            choices: How many experts every token is sent to.
        """


@dataclass(frozen=True)
class ExpertStack:
    """The matrices of all experts that are stored in one tensor of the model.

    Attributes:
        experts: The name of the module that holds it.
        own_name: What it is called there: ``gate_up_proj``, ``up_proj`` or ``down_proj``.
        weight: The tensor: experts, then outputs by inputs, or inputs by outputs where it is transposed.
        transposed: Whether a matrix has its inputs as rows.
        inlet: The module that is called with its inputs.
    """

    experts: str
    own_name: str
    weight: Tensor
    transposed: bool
    inlet: ExpertInlet

    @property
    def name(self) -> str:
        """The tensor's name in the model."""
        return f"{self.experts}.{self.own_name}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (outputs) and columns (inputs) of one matrix."""
        first, second = self.weight.shape[1:]
        return (second, first) if self.transposed else (first, second)


def expert_stacks(name: str, module: nn.Module) -> tuple[ExpertStack, ...]:
    """Return the stacks of a module of experts, in the order of the network; none where it is no such module.

    Experts that transformers does not compute through its interface count as no such module: they cannot be observed.

    Args:
        name: The module's name.
        module: Any module; inlets are put into it where it is one of experts.
    """
    if not _is_dispatched(module):
        return ()
    names = (_first(module), "down_proj")
    if not isinstance(getattr(module, _INLETS, None), nn.ModuleDict):
        setattr(module, _INLETS, nn.ModuleDict({own_name: ExpertInlet() for own_name in names}))
    inlets = module.get_submodule(_INLETS)
    transposed = bool(module.is_transposed)
    return tuple(
        ExpertStack(name, each, getattr(module, each), transposed, inlets.get_submodule(each))  # type: ignore[arg-type]
        for each in names
    )


@contextmanager
def observed_experts(model: nn.Module) -> Iterator[None]:
    """Let a model compute its experts one by one and call their inlets, for the length of the block."""
    configs: dict[int, Any] = {id(module.config): module.config for module in model.modules() if _is_dispatched(module)}
    with computed_by(_IMPLEMENTATION, _observed_forward, configs.values()):
        yield


def _is_dispatched(module: nn.Module) -> Any:
    """Whether a module's forward is the one that transformers' interface of experts calls."""
    return dispatched_experts(module) and all(
        isinstance(weight := getattr(module, own_name, None), Tensor) and weight.dim() == 3
        for own_name in (_first(module), "down_proj")
    )


def _first(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _observed_forward(module: Any, hidden_ND: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute experts as transformers does by default: sorted by expert, weighted, summed without atomics."""
    choices, first = top_k_index.shape[-1], _first(module)
    expert_S, order_S = torch.sort(top_k_index.reshape(-1), stable=True)
    source_S = order_S // choices
    each_E = torch.arange(len(module.down_proj) + 1, device=expert_S.device, dtype=expert_S.dtype)
    bounds = torch.searchsorted(expert_S, each_E).tolist()
    if bounds[0] != 0 or bounds[-1] != len(expert_S):
        raise DefectError(f"{type(module).__name__} sends tokens to experts that it does not have")
    up, down = _Linears.of(module, first), _Linears.of(module, "down_proj")
    found = []
    for expert, (begin, end) in enumerate(pairwise(bounds)):
        if begin < end:
            sources = source_S[begin:end]
            inner_SF = up(hidden_ND[sources], sources, expert, choices)
            inner_SF = gated(module, inner_SF) if module.has_gate else module.act_fn(inner_SF)
            found.append(down(inner_SF, sources, expert, choices))
    output_SD = torch.cat(found)
    if getattr(module, "has_post_expert_norm", False):
        output_SD = module.post_expert_norm(output_SD)
    weighted_SD = output_SD * top_k_weights.reshape(-1)[order_S].unsqueeze(-1)
    back_S = torch.empty_like(order_S)
    back_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    summed_ND = weighted_SD[back_S].view(len(hidden_ND), choices, -1).sum(dim=1)
    return summed_ND.to(hidden_ND.dtype)


@dataclass(frozen=True)
class _Linears:
    """One stack's matrices, read from the module once: with an adapter on it, each read computes them."""

    weight: Tensor
    bias_EO: Tensor | None
    transposed: bool
    inlet: nn.Module | None

    @classmethod
    def of(cls, module: Any, own_name: str) -> _Linears:
        inlets = getattr(module, _INLETS, None)
        return cls(
            getattr(module, own_name),
            getattr(module, f"{own_name}_bias") if module.has_bias else None,
            bool(module.is_transposed),
            None if inlets is None else inlets[own_name],
        )

    def __call__(self, input_SI: Tensor, source_S: Tensor, expert: int, choices: int) -> Tensor:
        weight = self.weight[expert].T if self.transposed else self.weight[expert]
        input_SI = input_SI.to(weight.dtype)
        if self.inlet is not None:
            self.inlet(input_SI, source_S, expert, choices)
        output_SO = functional.linear(input_SI, weight)
        # Added afterwards, and so rounded twice, as transformers does.
        return output_SO if self.bias_EO is None else output_SO.add_(self.bias_EO[expert])
