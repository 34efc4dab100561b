"""Loads any causal language model of transformers, with or without LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.choices import DtypeName
from antidote_llm.errors import UserError, setting
from antidote_llm.io.files import sha256_file
from antidote_llm.io.processes import largest
from antidote_llm.io.resources import hand_large_memory_back
from antidote_llm.models.adapter import (
    adapter_sites,
    base_not_found,
    base_reference,
    other_tensors,
    require_plain_lora,
    require_same_base,
)
from antidote_llm.models.checkpoint import (
    Checkpoint,
    is_adapter,
    locate,
    open_adapter_checkpoint,
    open_model_checkpoint,
)
from antidote_llm.models.checkpoint_files import contents
from antidote_llm.models.decoder import decoder_layers
from antidote_llm.models.from_pretrained import SPREAD, device_named, load_whole, quantiser_version
from antidote_llm.models.layer_stream import LayerStream, PartLoader, fill, parts_without_layers
from antidote_llm.models.lora_modules import attach, detach, with_peft_names
from antidote_llm.models.memory_budget import MemoryBudget, whole_bytes
from antidote_llm.models.sites import Site
from antidote_llm.models.tensor_names import ModelNames
from antidote_llm.models.tokenizers import open_tokenizer
from antidote_llm.models.torch_private import own_buffers


@dataclass
class LoadedModel:
    """A model in memory, ready for statistics and generation, with what it was opened from.

    Attributes:
        model: The causal language model, in evaluation mode, wrapped by peft where there is an adapter.
        tokenizer: Its tokenizer, None where the folder has none.
        sites: The matrices that may be edited.
        base: The checkpoint of the whole model.
        adapter: The checkpoint of the adapter that may be repaired, if any.
        lower_adapters: The checkpoints of the adapters below it, which belong to the aligned model.
        trust_remote_code: Whether Python code that comes with it may run.
        names: The names of the base's tensors in the model without adapters.
        left_out: Tensors of the base's files that the model has no place for.
        stream: Its decoder layers, where they are left on the disk: statistics can be collected, nothing generated.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase | None
    sites: tuple[Site, ...]
    base: Checkpoint
    names: ModelNames
    adapter: Checkpoint | None
    lower_adapters: tuple[Checkpoint, ...] = ()
    trust_remote_code: bool = False
    stream: LayerStream | None = None
    left_out: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Everything that it was opened from, the adapter last."""
        return (self.base, *self.lower_adapters, *([self.adapter] if self.adapter else []))

    @property
    def identity(self) -> dict[str, Any]:
        """All that its numbers depend on, as JSON values: hashes of its files and its code, its type and device."""
        code = contents(self.base.folder, ()).code if self.trust_remote_code else ()
        return {
            "base": self.base.sha256,
            "adapter": self.adapter.sha256 if self.adapter else None,
            "beneath": [adapter.sha256 for adapter in self.lower_adapters],
            "code": {name: sha256_file(self.base.folder / name) for name in code},
            "dtype": str(self.dtype),
            "device": self.device.type,
            **quantiser_version(self.base),
        }

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        if self.stream is not None:
            return self.stream.device
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the base model's first parameter."""
        dtype: torch.dtype = next(iter(self.causal_model.parameters())).dtype
        return dtype

    @property
    def causal_model(self) -> Any:
        """The transformers model, adapter layers inside it, without peft's wrapper."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def vocabulary_size(self) -> int:
        """How many token ids have an embedding."""
        return int(self.causal_model.get_input_embeddings().weight.shape[0])

    @property
    def positions(self) -> int | None:
        """How many positions the model was made for; None where it names no limit."""
        return getattr(self.causal_model.config.get_text_config(), "max_position_embeddings", None)

    def with_adapter(self, folder: Path) -> LoadedModel:
        """Replace the adapter by another of the same shape, in the same memory.

        The receiver must not be used afterwards.
        """
        opened = open_adapter_checkpoint(str(folder))
        require_plain_lora(opened)
        bare = self._bare()
        _, adapter = with_peft_names(bare, (), opened)
        assert adapter is not None
        model = attach(bare, self.lower_adapters, adapter, self.base.reference)
        return replace(self, model=model, sites=adapter_sites(adapter, model), adapter=adapter)

    def without_adapter(self) -> LoadedModel:
        """Remove the adapter, which leaves the aligned model. The receiver must not be used afterwards."""
        model = attach(self._bare(), self.lower_adapters, None, self.base.reference)
        return replace(self, model=model, sites=(), adapter=None)

    def with_weights(self, base: Checkpoint) -> LoadedModel:
        """Replace the model by another whole model of the same kind, with the same tokenizer.

        The receiver must not be used afterwards: its memory is freed first.
        """
        dtype, device = self.dtype, self.device
        spread = getattr(self.causal_model, "hf_device_map", None) is not None and self.base.quantisation is None
        base.require_unchanged()
        # Sites refer to modules: their memory is freed although they are still referred to.
        self.model.to("meta")
        del self.model
        model, names = load_whole(base, dtype, device, self.trust_remote_code, spread=spread)
        return replace(self, model=model, sites=(), base=base, names=names, lower_adapters=(), adapter=None)

    def _bare(self) -> PreTrainedModel:
        return detach(self.model, self.adapter, self.names)


def load_model(
    reference: str | Path,
    adapter: str | Path | None = None,
    *,
    lower_adapters: Sequence[str | Path] = (),
    tokenizer: str | Path | None = None,
    dtype: DtypeName = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    layers_on_disk: bool | None = False,
    budget: MemoryBudget | None = None,
) -> LoadedModel:
    """Open a model.

    Args:
        reference: A folder or Hub id of a model, or of an adapter that names its base.
        adapter: A folder or Hub id of a LoRA adapter on that model.
        lower_adapters: Folders or Hub ids of LoRA adapters that were on the model when ``adapter`` was trained.
        tokenizer: Where to take the tokenizer from, if not from the adapter's or the model's folder.
        dtype: The type to load weights in; ``auto`` is the checkpoint's own.
        device: ``cpu``, ``cuda``, ``cuda:1`` and so on; ``auto`` is a GPU where there is one, ``spread`` all of them.
        trust_remote_code: Whether to run Python code that comes with the checkpoint.
        layers_on_disk: Whether to leave the decoder layers on the disk, for models that are larger than memory; None
            where there is no room for them.
        budget: How much memory may be used; by default what is free.

    Raises:
        UserError: Anything about the files that does not fit, named with its fix.
    """
    base, lower, upper = _checkpoints(
        str(reference),
        None if adapter is None else str(adapter),
        [str(each) for each in lower_adapters],
        trust_remote_code,
    )
    for each in (*lower, *([upper] if upper else [])):
        require_plain_lora(each)
        require_same_base(each, base)
    model: Any
    stream = None
    place = device_named(device)
    budget = budget or MemoryBudget()
    budget.bound(place)
    if layers_on_disk is None:
        needed = whole_bytes([base, *lower, *([upper] if upper else [])], dtype)
        fits = budget.holds(needed, place, spread=device == SPREAD)
        # The same in all processes, or they would wait for each other at different points.
        layers_on_disk = base.quantisation is None and largest(not fits) > 0
    if layers_on_disk:
        model, stream = _skeleton(base, dtype, place, trust_remote_code)
        names = ModelNames(base, model)
    else:
        model, names = load_whole(base, dtype, place, trust_remote_code, spread=device == SPREAD)
    unused = _left_out(base, names)
    if upper or lower:
        lower, upper = with_peft_names(model, lower, upper)
        model = attach(model, lower, upper, base.reference)
    for each in lower:
        if others := other_tensors(each):
            raise UserError(f"{each.reference} also holds {others[0]}: merge it into the base before another adapter")
    sites = () if upper is None else adapter_sites(upper, model)
    folders = [each.folder for each in (upper, *reversed(lower), base) if each is not None]
    loaded = open_tokenizer(folders, None if tokenizer is None else str(tokenizer), trust_remote_code)
    return LoadedModel(model, loaded, sites, base, names, upper, lower, trust_remote_code, stream, unused)


def _left_out(base: Checkpoint, names: ModelNames) -> tuple[str, ...]:
    if base.quantisation is not None:
        # What belongs to packed weights has other names.
        return ()
    if factors := [key for key in names.left_out if "lora_" in key]:
        raise UserError(
            f"{base.reference}: an adapter's tensors are among the model's ('{factors[0]}') and would be left out: "
            "save the model without the adapter, and the adapter in a folder of its own (save_pretrained in peft)"
        )
    return tuple(names.left_out)


def _skeleton(
    base: Checkpoint, dtype: DtypeName, device: torch.device, trust_remote_code: bool
) -> tuple[PreTrainedModel, LayerStream]:
    """Return a model without its decoder layers' weights and without its head, and where these layers are."""
    if base.quantisation is not None:
        raise UserError(
            f"{base.reference}: quantised weights cannot be read layer by layer: pass {setting('engine')} memory"
        )
    hand_large_memory_back()
    loader = PartLoader(base, None if dtype == "auto" else getattr(torch, dtype), trust_remote_code)
    model = loader.skeleton()
    stack, layers = decoder_layers(model, base.reference)
    for module in model.modules():
        buffers = own_buffers(module)
        buffers.update({name: None if found is None else found.to(device) for name, found in buffers.items()})
    fill(
        model, "", {name: values.to(device) for name, values in loader.load(parts_without_layers(model, stack)).items()}
    )
    names = tuple(f"{stack}.{index}" for index in range(len(layers)))
    return model, LayerStream(tuple(layers), names, loader, device)


def _checkpoints(
    reference: str, adapter: str | None, lower_adapters: Sequence[str], trust_remote_code: bool
) -> tuple[Checkpoint, tuple[Checkpoint, ...], Checkpoint | None]:
    """Open the base, the lower adapters and the one on top; each reference is located once."""
    folder, upper = locate(reference, trust_remote_code=trust_remote_code), None
    if adapter is None and is_adapter(folder):
        upper = open_adapter_checkpoint(reference, folder)
        reference = base_reference(upper)
        try:
            folder = locate(reference, trust_remote_code=trust_remote_code)
        except UserError as error:
            raise base_not_found(upper, error) from error
    base = open_model_checkpoint(reference, folder)
    lower = tuple(open_adapter_checkpoint(name) for name in lower_adapters)
    if adapter is not None:
        upper = open_adapter_checkpoint(adapter)
    known: set[Path] = set()
    for each in (*lower, *([upper] if upper else [])):
        if (place := each.folder.resolve()) in known:
            raise UserError(f"{setting('adapter')} {each.reference} is given twice: name every adapter once")
        known.add(place)
    return base, lower, upper
