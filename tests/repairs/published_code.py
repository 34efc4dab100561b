"""The published mask, written out in the plainest way from its description: one row at a time, sort and cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def published_masks(base: Path, adapter: Path, rows: list[list[int]], alpha: float) -> dict[str, Tensor]:
    """Return True where the published algorithm zeroes an entry, by module name."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "lora" in name}
    scaler_row = {name: torch.zeros(linear.in_features) for name, linear in linears.items()}
    samples = dict.fromkeys(linears, 0)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).t().float()
            scaler_row[name] *= samples[name] / (samples[name] + 1)
            samples[name] += 1
            scaler_row[name] += torch.norm(x, p=2, dim=1) ** 2 / samples[name]

        return hook

    handles = [linear.register_forward_hook(watch(name)) for name, linear in linears.items()]
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()

    masks = {}
    for name, linear in linears.items():
        score = linear.weight.data.float().abs() * torch.sqrt(scaler_row[name]).reshape(1, -1)
        mask = torch.ones_like(score, dtype=torch.bool)
        order = torch.sort(score, dim=-1, stable=True)[1]
        keep = order[:, : int(score.shape[1] * (1 - alpha))]
        mask.scatter_(1, keep, False)
        masks[name.removeprefix("base_model.model.").replace(".default", "")] = mask
    return masks
