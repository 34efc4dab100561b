"""Puts LoRA adapters on a model in memory, and takes them off again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from antidote_llm.errors import UserError, first_line
from antidote_llm.models.adapter import ADAPTER_NAME, other_tensors, other_tensors_base_name, require_fits
from antidote_llm.models.adapter_limits import require_limits
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.config import BROKEN_CHECKPOINT, quiet_transformers
from antidote_llm.models.dora import is_dora, show_factors_tokens_only
from antidote_llm.models.peft_names import as_peft_reads, lacking, require_all_read
from antidote_llm.models.tensor_names import TensorNames
from antidote_llm.models.torch_private import own_parameters


def with_peft_names(
    model: PreTrainedModel, lower: Sequence[Checkpoint], upper: Checkpoint | None
) -> tuple[tuple[Checkpoint, ...], Checkpoint | None]:
    """Return adapters that know what peft calls their tensors on a model without adapters."""
    lower_read = tuple(as_peft_reads(adapter, model, _lower_name(index)) for index, adapter in enumerate(lower))
    return lower_read, None if upper is None else as_peft_reads(upper, model, ADAPTER_NAME)


def _lower_name(index: int) -> str:
    return f"lower_{index}"


def attach(
    model: PreTrainedModel, lower: Sequence[Checkpoint], upper: Checkpoint | None, reference: str
) -> PreTrainedModel | PeftModel:
    """Put adapters on a model, all of them active, the one that may be repaired last.

    Args:
        model: The model without adapters.
        lower: Adapters from :func:`with_peft_names`.
        upper: The one that may be repaired, from there too.
        reference: What the user calls the model.

    Raises:
        UserError: An adapter does not fit, or peft would not read it whole.
    """
    named = {_lower_name(index): adapter for index, adapter in enumerate(lower)}
    if upper is not None:
        named[ADAPTER_NAME] = upper
    attached: Any = model
    # peft leaves an adapter on the meta device if the base is there.
    streaming = {"low_cpu_mem_usage": any(parameter.is_meta for parameter in model.parameters())}
    for name, adapter in named.items():
        if is_dora(adapter) and getattr(model, "is_loaded_in_8bit", False):
            raise UserError(
                f"{adapter.reference}: DoRA on a base of 8 bits cannot be repaired: peft loses its scales "
                "when it takes norms: use the base in 4 bits, or before quantisation"
            )
        inner = model if attached is model else attached.get_base_model()
        require_fits(adapter, inner, reference)
        require_limits(adapter, [module_name for module_name, _ in inner.named_modules()])
        try:
            with quiet_transformers(), warnings.catch_warnings():
                # Finding the sites raises an error that names them.
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                if attached is model:
                    attached = PeftModel.from_pretrained(model, adapter.folder, adapter_name=name, **streaming)
                else:
                    attached.load_adapter(adapter.folder, adapter_name=name, **streaming)
            if streaming["low_cpu_mem_usage"]:
                _fill_from_file(attached, name, adapter)
        except KeyError as error:
            raise lacking(adapter, str(error.args[0])) from error
        except BROKEN_CHECKPOINT as error:
            adapter.require_unchanged()
            reason = first_line(error).rstrip(". ")
            raise UserError(
                f"{adapter.reference}: peft cannot put it on {reference} ({reason}): name the model that it was "
                "trained on, or fetch it again"
            ) from error
        require_all_read(adapter, attached, name, reference)
    if len(named) > 1:
        attached.base_model.set_adapter(list(named))
    show_factors_tokens_only(attached)
    return attached.eval().requires_grad_(False)


def _fill_from_file(attached: PeftModel, name: str, adapter: Checkpoint) -> None:
    """Give values to an adapter on a model whose layers are on the disk, in the type that peft computes with."""
    there = next(parameter for parameter in attached.parameters() if not parameter.is_meta)
    dtype = torch.promote_types(there.dtype, torch.float32)
    (file,) = adapter.weights.values()
    keys = {own_name: key for key, own_name in adapter.peft_names.items()}
    for module_name, module in attached.named_modules():
        parameters = own_parameters(module)
        for own_name, parameter in parameters.items():
            stored = f"{module_name}.{own_name}".replace(f".{name}", "", 1)
            key = next((keys[known] for known in (stored, stored.removesuffix(".weight")) if known in keys), None)
            if parameter is not None and parameter.is_meta and key is not None:
                # A copy is aligned as peft's own parameters are: the last bits may depend on where they are in memory.
                values = file.read(key).to(there.device, dtype, copy=True)
                parameters[own_name] = torch.nn.Parameter(values, requires_grad=False)


def detach(model: PreTrainedModel | PeftModel, adapter: Checkpoint | None, base: TensorNames) -> PreTrainedModel:
    """Remove all adapters from a model, and restore modules of the base that an adapter trained whole."""
    if not isinstance(model, PeftModel):
        return model
    for module in model.modules():
        # By itself, peft keeps the adapter's copy of a module that was trained whole.
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save[ADAPTER_NAME] = module.original_module
    bare: PreTrainedModel = model.unload()
    if adapter is not None:
        _put_back(bare, adapter, base)
    return bare


@torch.no_grad()
def _put_back(model: PreTrainedModel, adapter: Checkpoint, base: TensorNames) -> None:
    """Undo what peft writes into the base itself: the biases of an adapter that trained them."""
    for key in other_tensors(adapter):
        name = other_tensors_base_name(key)
        if (stored := base.find(name)) is None:
            raise UserError(f"{adapter.reference}: '{key}' has no counterpart in the base model: it cannot be removed")
        model.get_parameter(name).copy_(stored.file.read(stored.entry.key))
