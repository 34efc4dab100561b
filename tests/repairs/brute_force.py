"""Antidote written out in the plainest way: one row at a time, a hook on every matrix, a stable sort.

Legend: O rows and I columns of a matrix, T tokens of a row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tests import mixtures


@dataclass(frozen=True)
class Scored:
    """One matrix and the score of each of its entries.

    Attributes:
        layer: The index of its decoder layer.
        score_OI: Its scores.
        transposed: Whether the file holds it with inputs as rows.
    """

    layer: int | None
    score_OI: Tensor
    transposed: bool


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder's weight files."""
    return {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}


def matrices(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a folder's weight files, and the slices of those that are stacks under ``key[index]``."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors(folder).items():
        stacked = tensor.dim() == 3 and ".experts." in key
        found |= {f"{key}[{index}]": part for index, part in enumerate(tensor)} if stacked else {key: tensor}
    return found


def with_adapters(base: Path, adapters: Sequence[Path]) -> Any:
    """Open a model with adapters on it, all at work, named by their places."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if not adapters:
        return model.eval()
    adapted = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
    for place, adapter in enumerate(adapters[1:], start=1):
        adapted.load_adapter(adapter, adapter_name=str(place))
    adapted.base_model.set_adapter([str(place) for place in range(len(adapters))])
    return adapted.eval()


def adapter_scores(base: Path, adapters: Sequence[Path], rows: Sequence[Sequence[int]]) -> dict[str, Scored]:
    """Score the factors of the last adapter, by their names in its file."""
    model, last = with_adapters(base, adapters), str(len(adapters) - 1)
    modules: dict[str, nn.Module] = {
        name.removesuffix(last) + "weight": module
        for name, module in model.named_modules()
        if name.endswith((f"lora_A.{last}", f"lora_B.{last}"))
    }
    norms, stored = _input_norms(model, modules, rows), tensors(adapters[-1])
    names = sorted(modules, key=lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in name.split(".")])
    return {name: Scored(_layer(name), stored[name].float().abs() * norms[name], False) for name in names}


def weight_scores(tuned: Path, aligned: Path | None, rows: Sequence[Sequence[int]]) -> dict[str, Scored]:
    """Score linear layers of a whole model, or how far they moved from the aligned one, by their names on disk.

    Matrices of experts are named as :func:`matrices` does.
    """
    model, stored = AutoModelForCausalLM.from_pretrained(tuned).eval(), matrices(tuned)
    reference = None if aligned is None else matrices(aligned)
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name.endswith("shared_expert_gate"):
            continue
        if isinstance(module, (nn.Linear, Conv1D)) and _layer(name) is not None:
            key = f"{name}.weight"
            modules[key if key in stored else key.split(".", 1)[1]] = module
    norms, found = _input_norms(model, modules, rows), {}
    turned = {key: isinstance(module, Conv1D) for key, module in modules.items()}
    for key, norm_I in _expert_norms(model, rows, stored).items():
        norms[key], turned[key] = norm_I, key.endswith("]") and not _expert_rows_first(model)
    for key, transposed in turned.items():
        update = stored[key].float() if reference is None else stored[key].float() - reference[key].float()
        update_OI = update.T if transposed else update
        found[key] = Scored(_layer(key), update_OI.abs() * norms[key], transposed)
    return dict(sorted(found.items(), key=lambda item: item[1].layer or 0))


def _expert_norms(model: nn.Module, rows: Sequence[Sequence[int]], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the norms of what experts see, zero for those that see nothing, by their matrices' names."""
    sums: dict[str, Tensor] = {}
    stacks = [
        (name, own_name, parameter)
        for name, module in model.named_modules()
        for own_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and own_name in ("gate_up_proj", "down_proj")
    ]
    for name, own_name, parameter in stacks:
        for expert in range(len(parameter)):
            for key in _expert_keys(name, own_name, expert, stored):
                sums[key] = torch.zeros(1, dtype=torch.float64)
    for row in rows:
        for (name, own_name, expert), (_, input_SI) in mixtures.inputs_of_experts(model, row).items():
            for key in _expert_keys(name, own_name, expert, stored):
                sums[key] = sums[key] + input_SI.float().square().sum(dim=0).double()
    return {key: (total / len(rows)).sqrt().float() for key, total in sums.items()}


def _expert_keys(experts: str, own_name: str, expert: int, stored: Mapping[str, Tensor]) -> list[str]:
    outer = experts.replace(".mlp.", ".block_sparse_moe.")
    parts = ("gate_proj", "up_proj", "w1", "w3") if own_name == "gate_up_proj" else ("down_proj", "w2")
    keys = [f"{experts}.{own_name}[{expert}]"]
    keys += [f"{base}.{expert}.{part}.weight" for base in (experts, outer) for part in parts]
    return [key for key in keys if key in stored]


def _expert_rows_first(model: nn.Module) -> bool:
    return not any(getattr(module, "is_transposed", False) for module in model.modules())


def _layer(name: str) -> int | None:
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(match[1]) if match else None


def _input_norms(
    model: nn.Module, modules: Mapping[str, nn.Module], rows: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            input_TI = args[0].reshape(-1, args[0].shape[-1]).float()
            sums[name] = sums.get(name, 0) + input_TI.square().sum(dim=0).double()

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return {name: (total / len(rows)).sqrt().float() for name, total in sums.items()}


def masks(
    scored: Mapping[str, Scored], alpha: float, scope: Literal["row", "matrix", "layer", "global"] = "row"
) -> dict[str, Tensor]:
    """Return True where an entry is among the highest of what is ranked together, shape [rows, columns]."""
    if scope == "row":
        return {
            key: torch.stack([_highest(row, alpha) for row in each.score_OI]).bool() for key, each in scored.items()
        }
    groups: dict[Hashable, list[str]] = {}
    for key, each in scored.items():
        groups.setdefault({"matrix": key, "layer": each.layer, "global": None}[scope], []).append(key)
    found: dict[str, Tensor] = {}
    for keys in groups.values():
        together = _highest(torch.cat([scored[key].score_OI.reshape(-1) for key in keys]), alpha)
        parts = torch.split_with_sizes(together, [scored[key].score_OI.numel() for key in keys])
        found |= {key: part.reshape(scored[key].score_OI.shape) for key, part in zip(keys, parts, strict=True)}
    return found


def _highest(scores: Tensor, alpha: float) -> Tensor:
    k = math.floor(alpha * len(scores) + 0.5)
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[torch.sort(scores, stable=True).indices[len(scores) - k :]] = True
    return chosen & (scores > 0)
