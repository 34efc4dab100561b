"""What is used of peft beyond its documented interface.

What is assumed of it is tested in ``tests/models/test_peft_private.py``; the versions are bounded in
``pyproject.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peft import LoraConfig
from peft.utils.integrations import dequantize_module_weight
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel


def as_loaded(model: PreTrainedModel, tensors: Mapping[str, Tensor], adapter_name: str) -> Mapping[str, Tensor]:
    """Return an adapter's tensors by the names under which peft loads them onto a model.

    transformers has moved modules of some models since their adapters were saved. A tensor that peft only renames is
    the same object in what is returned.

    Args:
        model: The model, without adapters.
        tensors: The adapter's tensors by their names in its file.
        adapter_name: What the adapter is called on the model.
    """
    found: Mapping[str, Tensor] = convert_peft_adapter_state_dict_for_transformers(
        model, LoraConfig(), dict(tensors), adapter_name
    )
    return found


def unpacked_weight(module: nn.Module) -> Tensor:
    """Return the weight of a layer of the base model, unpacked where it is quantised."""
    found: Tensor = dequantize_module_weight(module)
    return found


def replace_dora_products(model: nn.Module, product: Callable[..., Tensor]) -> None:
    """Let every DoRA module of a model compute B A by a function.

    Args:
        model: A model with adapters.
        product: Takes the modules A and B, and keywords that it can ignore; returns B A.
    """
    for layer in model.modules():
        magnitudes: Any = getattr(layer, "lora_magnitude_vector", None)
        for dora in (magnitudes or {}).values():
            dora.get_lora_weight = product
