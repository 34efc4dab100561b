"""Bases whose weights are packed into few bits: run as they are under an adapter, and never edited themselves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.naming import TensorNames
from antidote_llm.models.tensor_files import DTYPES

_BITSANDBYTES = "bitsandbytes"


def quantiser(checkpoint: Checkpoint) -> str | None:
    """Return the name of the method that packed a checkpoint's weights, as its configuration has it; None for none."""
    settings = checkpoint.config.get("quantization_config")
    if not settings:
        return None
    return str(settings.get("quant_method") or "unnamed") if isinstance(settings, Mapping) else "unnamed"


def require_not_quantised(checkpoint: Checkpoint, purpose: str) -> None:
    """Refuse a quantised checkpoint where its weights themselves are needed.

    Args:
        checkpoint: A whole model.
        purpose: What cannot be done with it, as in ``trained``.

    Raises:
        UserError: It is quantised.
    """
    if (name := quantiser(checkpoint)) is not None:
        raise UserError(
            f"{checkpoint.reference}: quantised weights ({name}) cannot be {purpose}: use the checkpoint before "
            "quantisation"
        )


def quantiser_version(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what unpacks a checkpoint's weights, and its version, on which its numbers depend; empty for none."""
    if quantiser(checkpoint) != _BITSANDBYTES:
        return {}
    return {_BITSANDBYTES: importlib.metadata.version(_BITSANDBYTES)}


def cast_unpacked(model: PreTrainedModel, dtype: torch.dtype, checkpoint: Checkpoint) -> None:
    """Cast what is not packed (embeddings, norms, the head), and with it what the packed matrices compute in.

    Raises:
        UserError: The method that packed the weights decides about types itself.
    """
    if getattr(model, "hf_quantizer", None) is None:
        # Unpacked when it was loaded: weights like any others.
        model.to(dtype)
        return
    if (name := quantiser(checkpoint)) != _BITSANDBYTES:
        raise UserError(
            f"{checkpoint.reference}: --dtype: weights quantised by {name} compute in the type that they were made "
            "for: leave --dtype out"
        )
    for parameter in model.parameters():
        # Packed matrices are parameters of classes of their own.
        if type(parameter) is nn.Parameter and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def require_unpackable(checkpoint: Checkpoint, model: Any) -> None:
    """Refuse what the library passed over: a method, weights that are not packed, NaN among what they are scaled with.

    Raises:
        UserError: Names the method or the tensor.
    """
    settings: Any = checkpoint.config["quantization_config"]
    if not AutoHfQuantizer.supports_quant_method(dict(settings)):
        raise UserError(
            f"{checkpoint.reference}: quantised by {quantiser(checkpoint)}, which transformers "
            f"{transformers.__version__} does not know: install one that does, or use the one before quantisation"
        )
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module).__module__.startswith(f"{_BITSANDBYTES}.") and type(weight) is nn.Parameter:
            raise UserError(
                f"{checkpoint.reference}: {name}.weight is not quantised, though config.json says so: take "
                "quantization_config out of it, or fetch the checkpoint before quantisation"
            )
    names = TensorNames.of(checkpoint, model)
    unpacked = {found.entry.key for name, _ in model.named_parameters() if (found := names.find(name)) is not None}
    for stored in names.all.values():
        if stored.entry.dtype in DTYPES and stored.entry.key not in unpacked:
            stored.file.read(stored.entry.key)
