"""What is used of transformers beyond its documented interface: all of it, and nothing of it elsewhere in this room.

What is assumed of it is tested in ``tests/models/test_transformers_private.py``; the versions are bounded in
``pyproject.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import LoadStateDictConfig

__all__ = [
    "Concatenate",
    "LoadStateDictConfig",
    "MergeModulelist",
    "Transpose",
    "WeightConverter",
    "compute_buffers_anew",
    "computed_by",
    "conversions",
    "dispatched_experts",
    "gated",
    "ignored_tensors",
    "load_tensors",
    "loading_settings",
    "names_in_model",
    "supports_dynamic_cache",
    "tied_names",
]


def conversions(model: PreTrainedModel) -> Sequence[object]:
    """Return how transformers renames and converts the tensors of files when it loads such a model."""
    found: Sequence[object] = get_model_conversion_mapping(model)
    return found


def names_in_model(keys: Iterable[str], model: PreTrainedModel) -> Iterator[tuple[str, str, str | None]]:
    """Yield stored tensors that a model computes with: key, name in the model, and the conversion's pattern, if any.

    Others are left out, such as the masks of old files.

    Args:
        keys: The names of the tensors in the files.
        model: The model, with or without values in its parameters, and without adapters.
    """
    transforms = conversions(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    wanted, prefix = model.state_dict(), model.base_model_prefix
    # In this order, because the place in a stack is that of the name in it, and some renamings depend on earlier ones.
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], prefix, wanted)
        if name in wanted:
            yield key, name, pattern


def tied_names(model: Any) -> Mapping[str, str]:
    """Return the names of tied parameters, each with the name of the parameter that it is the same as."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def ignored_tensors(model: PreTrainedModel) -> tuple[str, ...]:
    """Return patterns of stored tensors that a model's class ignores on purpose: saving the model loses them."""
    return tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())


def compute_buffers_anew(model: PreTrainedModel) -> None:
    """Compute the buffers of a model, and tie its parameters, as when it is loaded whole; its parameters are not set.

    Its parameters are on the meta device.
    """
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()
    model.tie_weights()


def loading_settings(model: PreTrainedModel, dtype: torch.dtype) -> LoadStateDictConfig:
    """Return the settings with which transformers loads tensors into a model in a type, some of them in a wider one."""
    return LoadStateDictConfig(dtype=dtype, dtype_plan=model._get_dtype_plan(dtype), weight_mapping=conversions(model))


def load_tensors(model: PreTrainedModel, tensors: Mapping[str, Tensor], settings: LoadStateDictConfig) -> list[str]:
    """Load stored tensors into a model; return the names of those that do not fit.

    Args:
        model: The model; parameters of which nothing is given stay on the meta device.
        tensors: What the files hold, by their names there.
        settings: From :func:`loading_settings`.
    """
    info, _ = convert_and_load_state_dict_in_model(model, tensors, settings)
    return list(map(str, [*(key for key, *_ in info.mismatched_keys), *info.conversion_errors]))


def dispatched_experts(module: nn.Module) -> bool:
    """Whether the forward of a module of experts is the one that transformers' interface of experts calls."""
    marks = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "config")
    return all(hasattr(module, mark) for mark in marks)


@contextmanager
def computed_by(name: str, forward: Callable[..., Tensor], configs: Iterable[Any]) -> Iterator[None]:
    """Let experts be computed by a function for the length of the block.

    Args:
        name: What the function is registered as.
        forward: Takes the module, hidden states, and the indices and weights of the experts of each token.
        configs: The configurations of the modules of experts.
    """
    before = [(config, config._experts_implementation_internal) for config in configs]
    ALL_EXPERTS_FUNCTIONS.register(name, forward)
    try:
        for config, _ in before:
            config._experts_implementation_internal = name
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation_internal = implementation


def gated(module: Any, inner: Tensor) -> Tensor:
    """Return the activations of experts that have a gate: of the joined outputs of gate and up projection."""
    found: Tensor = module._apply_gate(inner)
    return found


def supports_dynamic_cache(model: PreTrainedModel) -> bool:
    """Whether a model can generate with the ``DynamicCache`` of transformers."""
    found: bool = model._supports_default_dynamic_cache()
    return found
