"""The published scoring loop on today's transformers: what it computes, in the order and with the cost that it has.

Written from its description, as a yardstick: one row at a time through one layer at a time; every layer passed twice,
once for its statistics and once for the next layer's inputs; a hook on every matrix; the hidden states of all rows
kept; a full sort of every row of scores; masks in the weights' type, copied and kept to the end. Three things had to
follow transformers: a layer is handed its rotary tables, returns a tensor, and gets no mask where a row has no pads.

Legend: T positions of the one row, D hidden size, O rows and I columns of a matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn


class _Caught(Exception):  # noqa: N818
    """Ends a forward pass at its first decoder layer."""


class _Catcher(nn.Module):
    """Stands in for the first decoder layer and keeps what it is called with."""

    def __init__(self, hidden_1TD: list[Tensor], arguments: list[dict[str, Any]]) -> None:
        super().__init__()
        self._hidden_1TD, self._arguments = hidden_1TD, arguments

    def forward(self, hidden_1TD: Tensor, **arguments: Any) -> Tensor:
        self._hidden_1TD.append(hidden_1TD)
        self._arguments.append(arguments)
        raise _Caught


class _RunningMean:
    """The mean over rows of the squared norm of every input column of one matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        self.mean_I = torch.zeros(linear.in_features, device=linear.weight.device)
        self._rows = 0

    def hook(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        """Add the row whose input a matrix has just seen."""
        del module, output
        input_IT = arguments[0].reshape(-1, arguments[0].shape[-1]).t().float()
        self.mean_I *= self._rows / (self._rows + 1)
        self._rows += 1
        self.mean_I += torch.norm(input_IT, p=2, dim=1) ** 2 / self._rows


@torch.no_grad()
def published_masks(model: PeftModel, rows: Sequence[Sequence[int]], alpha: float) -> dict[str, Tensor]:
    """Score an adapter's matrices on rows of token ids.

    Returns:
        By the name of the parameter, 1 where an entry is to be removed and 0 elsewhere, in the weight's type.
    """
    layers = model.get_base_model().get_decoder().layers
    hidden_1TD, arguments = _first_inputs(model, layers, rows)
    names = {id(module): name for name, module in model.named_modules()}
    masks: dict[str, Tensor] = {}
    for layer in layers:
        linears = {names[id(m)]: m for m in layer.modules() if isinstance(m, nn.Linear) and "lora" in names[id(m)]}
        means = {name: _RunningMean(linear) for name, linear in linears.items()}
        handles = [linear.register_forward_hook(means[name].hook) for name, linear in linears.items()]
        after_1TD = _through(layer, hidden_1TD, arguments)
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            mask_OI = _mask(linear.weight.data, means[name].mean_I, alpha)
            masks[f"{name}.weight"] = copy.deepcopy(mask_OI)
        after_1TD = _through(layer, hidden_1TD, arguments)
        hidden_1TD, after_1TD = after_1TD, hidden_1TD
    return masks


@torch.no_grad()
def apply_masks(model: PeftModel, masks: Mapping[str, Tensor]) -> None:
    """Zero the masked entries, after all of them are known."""
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter *= 1 - masks[name]


def _first_inputs(
    model: PeftModel, layers: nn.ModuleList, rows: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    hidden_1TD: list[Tensor] = []
    arguments: list[dict[str, Any]] = []
    first, device = layers[0], next(model.parameters()).device
    layers[0] = _Catcher(hidden_1TD, arguments)
    try:
        for row in rows:
            try:
                model(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
            except _Caught:
                continue
    finally:
        layers[0] = first
    return hidden_1TD, arguments


def _through(layer: nn.Module, hidden_1TD: Sequence[Tensor], arguments: Sequence[dict[str, Any]]) -> list[Tensor]:
    return [layer(one_1TD, **own) for one_1TD, own in zip(hidden_1TD, arguments, strict=True)]


def _mask(weight_OI: Tensor, mean_I: Tensor, alpha: float) -> Tensor:
    score_OI = weight_OI.abs() * torch.sqrt(mean_I.reshape(1, -1))
    mask_OI = torch.ones_like(score_OI)
    order_OI = torch.sort(score_OI, dim=-1, stable=True)[1]
    mask_OI.scatter_(1, order_OI[:, : int(score_OI.shape[1] * (1 - alpha))], 0)
    return mask_OI
