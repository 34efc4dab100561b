"""DoRA: an adapter whose modules also have a magnitude for each row of their weight (arXiv 2402.09353).

A module computes ``m (W + s B A) / ||W + s B A||``, the norm taken row by row. Its sites are B and A, as in plain LoRA;
the magnitudes m are part of the update outside of them. Their first values are the row norms of W: with those and
without B A, the module is the base's own.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from antidote_llm.models.checkpoint import Checkpoint, StoredTensor
from antidote_llm.models.peft_private import replace_dora_products, unpacked_weight

_MAGNITUDE = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_magnitude_vector(\.weight)?$")


def is_dora(adapter: Checkpoint) -> bool:
    """Whether an adapter's modules have magnitudes."""
    return bool(adapter.config.get("use_dora"))


def magnitude_of(key: str) -> str | None:
    """Return the module that a tensor of an adapter is the magnitudes of, None where it is something else."""
    match = _MAGNITUDE.match(key)
    return match["module"] if match else None


def show_factors_tokens_only(model: nn.Module) -> None:
    """Let every DoRA module of a model with adapters compute B A from its factors' weights.

    peft sends an identity matrix through A and B for that, on every forward pass, and a hook on them counts its rows as
    tokens. The product has the same bits: A of the identity is A transposed.
    """
    replace_dora_products(model, _product)


def _product(lora_A: nn.Module, lora_B: nn.Module, **_: object) -> Tensor:
    a_IR = lora_A.get_parameter("weight").T.contiguous()
    return nn.functional.linear(a_IR, lora_B.get_parameter("weight")).T


@torch.no_grad()
def row_norms(layer: nn.Module, stored: StoredTensor) -> Tensor:
    """Return the norm of each row of the base's weight under an adapter's layer: the first values of its magnitudes.

    Args:
        layer: A layer of peft, its weight packed or not.
        stored: Where that weight is on the disk, used if it is not in memory.
    """
    inner: Any = layer
    weight = inner.get_base_layer().weight
    if weight.is_meta:
        weight = stored.file.read(stored.entry.key).to(weight.dtype)
    else:
        weight = unpacked_weight(inner.get_base_layer())
    weight_OI = weight.T if getattr(inner, "fan_in_fan_out", False) else weight
    norms_O: Tensor = torch.linalg.norm(weight_OI, dim=1).to(weight.dtype).cpu()
    return norms_O
