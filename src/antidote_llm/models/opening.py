"""Opens any causal language model of transformers, with or without a LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.artifacts.allocation import hand_large_memory_back
from antidote_llm.artifacts.hashing import sha256_file
from antidote_llm.errors import UserError, first_line
from antidote_llm.models.adapters import (
    adapter_sites,
    base_folder,
    other_tensors,
    require_plain_lora,
    require_same_base,
)
from antidote_llm.models.attaching import attach, detach
from antidote_llm.models.checkpoint import (
    Checkpoint,
    is_adapter,
    locate,
    open_adapter_checkpoint,
    open_model_checkpoint,
)
from antidote_llm.models.configuration import BROKEN_CHECKPOINT, parsed_config
from antidote_llm.models.loading import PartLoader
from antidote_llm.models.naming import TensorNames
from antidote_llm.models.quantised import cast_unpacked, quantiser, quantiser_version, require_unpackable
from antidote_llm.models.quiet import quiet_transformers
from antidote_llm.models.room import Room, whole_bytes
from antidote_llm.models.sites import Site
from antidote_llm.models.streaming import LayerStream, beside, decoder_layers, fill
from antidote_llm.models.tensor_files import DTYPES
from antidote_llm.models.tokenizers import open_tokenizer

DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "float64"]


@dataclass
class OpenModel:
    """A model in memory, ready for statistics and generation, with what it was opened from.

    Attributes:
        model: The causal language model, in evaluation mode, wrapped by peft where there is an adapter.
        tokenizer: Its tokenizer, None where the folder has none.
        sites: The matrices that may be edited.
        base: The checkpoint of the whole model.
        adapter: The checkpoint of the adapter that may be repaired, if any.
        beneath: The checkpoints of the adapters under it, which belong to the aligned model.
        trust_remote_code: Whether it was opened with Python code of its own.
        stream: Its decoder layers, where they are left on the disk: statistics can be collected, nothing generated.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase | None
    sites: tuple[Site, ...]
    base: Checkpoint
    adapter: Checkpoint | None
    beneath: tuple[Checkpoint, ...] = ()
    trust_remote_code: bool = False
    stream: LayerStream | None = None

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Everything that it was opened from, the adapter last."""
        return (self.base, *self.beneath, *([self.adapter] if self.adapter else []))

    @property
    def identity(self) -> dict[str, Any]:
        """All that its numbers depend on, as JSON values: hashes of what was opened, code of its own, type, device."""
        code = sorted(self.base.folder.glob("*.py")) if self.trust_remote_code else []
        return {
            "base": self.base.sha256,
            "adapter": self.adapter.sha256 if self.adapter else None,
            "beneath": [adapter.sha256 for adapter in self.beneath],
            "code": {path.name: sha256_file(path) for path in code},
            "dtype": str(self.dtype),
            "device": self.device.type,
            **quantiser_version(self.base),
        }

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
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

    def with_adapter(self, folder: Path) -> OpenModel:
        """Put another adapter of the same shape in the place of this one, in the same memory.

        The receiver must not be used afterwards.
        """
        adapter = open_adapter_checkpoint(str(folder))
        require_plain_lora(adapter)
        model = attach(self._bare(), self.beneath, adapter, self.base.reference)
        return replace(self, model=model, sites=adapter_sites(adapter, model), adapter=adapter)

    def without_adapter(self) -> OpenModel:
        """Take the adapter away: the aligned model. The receiver must not be used afterwards."""
        model = attach(self._bare(), self.beneath, None, self.base.reference)
        return replace(self, model=model, sites=(), adapter=None)

    def with_weights(self, base: Checkpoint) -> OpenModel:
        """Load another whole model of the same kind in the place of this one, with the same tokenizer.

        The receiver must not be used afterwards: its memory is given back first.
        """
        dtype, device = self.dtype, self.device
        base.require_unchanged()
        # Sites hold on to modules: what they weigh is given back, whoever still knows them.
        self.model.to("meta")
        del self.model
        model = _load(base, dtype, device, self.trust_remote_code)
        return replace(self, model=model, sites=(), base=base, beneath=(), adapter=None)

    def _bare(self) -> PreTrainedModel:
        return detach(self.model, self.adapter, self.base)


def open_model(
    reference: str,
    adapter: str | None = None,
    *,
    beneath: Sequence[str] = (),
    tokenizer: str | None = None,
    dtype: DtypeName = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    layers_on_disk: bool | None = False,
    room: Room | None = None,
) -> OpenModel:
    """Open a model.

    Args:
        reference: A folder or Hub id of a model, or of an adapter that names its base.
        adapter: A folder or Hub id of a LoRA adapter on that model.
        beneath: Folders or Hub ids of LoRA adapters that were on the model when ``adapter`` was trained.
        tokenizer: Where to take the tokenizer from, if not from the adapter's or the model's folder.
        dtype: The type to load weights in; ``auto`` is the checkpoint's own.
        device: ``cpu``, ``cuda``, ``cuda:1`` and so on; ``auto`` is a GPU where there is one.
        trust_remote_code: Whether to run Python code that comes with the checkpoint.
        layers_on_disk: Whether to leave the decoder layers on the disk, for models that are larger than memory; None
            where there is no room for them.
        room: What memory may be used; by default what is free.

    Raises:
        UserError: Anything about the files that does not fit, named with its mend.
    """
    base, lower, upper = _checkpoints(reference, adapter, beneath, trust_remote_code)
    for each in (*lower, *([upper] if upper else [])):
        require_plain_lora(each)
        require_same_base(each, base)
    for each in lower:
        if others := other_tensors(each):
            raise UserError(f"{each.reference} also holds {others[0]}: merge it into the base before another adapter")
    model: Any
    stream = None
    place = _device(device)
    if layers_on_disk is None:
        needed = whole_bytes([base, *lower, *([upper] if upper else [])], dtype)
        layers_on_disk = quantiser(base) is None and not (room or Room()).holds(needed, place)
    if layers_on_disk:
        model, stream = _skeleton(base, dtype, place, trust_remote_code)
    else:
        model = _load(base, dtype, place, trust_remote_code)
    if upper or lower:
        model = attach(model, lower, upper, base.reference)
    sites = () if upper is None else adapter_sites(upper, model)
    folders = [each.folder for each in (upper, *reversed(lower), base) if each is not None]
    loaded = open_tokenizer(folders, tokenizer, trust_remote_code)
    return OpenModel(model, loaded, sites, base, upper, lower, trust_remote_code, stream)


def _skeleton(
    base: Checkpoint, dtype: DtypeName, device: torch.device, trust_remote_code: bool
) -> tuple[PreTrainedModel, LayerStream]:
    """Return a model without its decoder layers' weights and without its head, and where these layers are."""
    if quantiser(base) is not None:
        raise UserError(f"{base.reference}: quantised weights cannot be read layer by layer: pass --engine memory")
    hand_large_memory_back()
    loader = PartLoader(base, None if dtype == "auto" else getattr(torch, dtype), trust_remote_code)
    model = loader.skeleton()
    stack, layers = decoder_layers(model, base.reference)
    for module in model.modules():
        module._buffers.update(
            {name: None if found is None else found.to(device) for name, found in module._buffers.items()}
        )
    fill(model, "", {name: values.to(device) for name, values in loader.load(beside(model, stack)).items()})
    names = tuple(f"{stack}.{index}" for index in range(len(layers)))
    return model, LayerStream(tuple(layers), names, loader, device)


def _checkpoints(
    reference: str, adapter: str | None, beneath: Sequence[str], trust_remote_code: bool
) -> tuple[Checkpoint, tuple[Checkpoint, ...], Checkpoint | None]:
    """Open the base, the adapters beneath and the one on top; each reference is located once."""
    folder, upper = locate(reference, trust_remote_code=trust_remote_code), None
    if adapter is None and is_adapter(folder):
        upper = open_adapter_checkpoint(reference, folder)
        reference = _base_of(upper)
        folder = locate(reference, trust_remote_code=trust_remote_code)
    base = open_model_checkpoint(reference, folder)
    lower = tuple(open_adapter_checkpoint(name) for name in beneath)
    if adapter is not None:
        upper = open_adapter_checkpoint(adapter)
    known: set[Path] = set()
    for each in (*lower, *([upper] if upper else [])):
        if (place := each.folder.resolve()) in known:
            raise UserError(f"--adapter {each.reference} is given twice: name every adapter once")
        known.add(place)
    return base, lower, upper


def _base_of(adapter: Checkpoint) -> str:
    if (folder := base_folder(adapter)) is not None:
        return str(folder)
    name = str(adapter.config.get("base_model_name_or_path") or "")
    if not name or name.startswith((".", "/", "~")):
        problem = f"names a base that is not here ({name})" if name else "names no base model"
        raise UserError(f"{adapter.reference}: the adapter {problem}: pass MODEL --adapter {adapter.reference}")
    return name


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refusal = UserError(f"--device {name}: not a device of this machine: use auto, cpu or cuda")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise refusal from error
    if device.type == "meta":
        raise refusal
    return device


def _load(
    base: Checkpoint, dtype: DtypeName | torch.dtype, device: torch.device, trust_remote_code: bool
) -> PreTrainedModel:
    config, packed = parsed_config(base, trust_remote_code), quantiser(base)
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                base.folder,
                config=config,
                dtype="auto" if packed else _torch_dtype(dtype),
                device_map={"": device} if packed else None,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # Said as an error, by name, below.
                ignore_mismatched_sizes=True,
            )
    except BROKEN_CHECKPOINT as error:
        base.require_unchanged()
        mend = f", quantised by {packed} (or use the checkpoint before quantisation)" if packed else ""
        raise UserError(f"{base.reference}: transformers cannot open it{mend}: {first_line(error)}") from error
    if missing := sorted(map(str, info["missing_keys"])):
        raise UserError(
            f"{base.reference}: the checkpoint lacks {missing[0]} ({len(missing)} tensors in all): fetch it again"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, *shapes = mismatched[0]
        stored, wanted = (" x ".join(map(str, shape)) for shape in shapes)
        raise UserError(
            f"{base.reference}: {name} is {stored}, by config.json it should be {wanted} ({len(mismatched)} tensors in "
            "all): fetch it again"
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    if packed is None:
        loaded.to(device)
    elif isinstance(chosen := _torch_dtype(dtype), torch.dtype):
        cast_unpacked(loaded, chosen, base)
    _require_sound(base, loaded)
    return loaded


def _torch_dtype(dtype: DtypeName | torch.dtype) -> torch.dtype | Literal["auto"]:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    named: torch.dtype = getattr(torch, dtype)
    return named


def _require_sound(base: Checkpoint, model: PreTrainedModel) -> None:
    """Refuse weights that are not floating-point numbers on the disk, or not finite ones in memory."""
    names, packed = TensorNames.of(base, model), quantiser(base) is not None
    if packed:
        require_unpackable(base, model)
    for name, parameter in model.named_parameters():
        stored = names.find(name)
        if packed and not parameter.is_floating_point():
            continue
        if stored is not None and stored.entry.dtype not in DTYPES and not packed:
            raise UserError(
                f"{base.reference}: {stored.entry.key} is {stored.entry.dtype}: quantised weights are not supported "
                "yet: use the checkpoint before quantisation"
            )
        # Their least and greatest are NaN or infinite if any is: one pass, no second tensor.
        if parameter.numel() and not all(bool(end.isfinite()) for end in parameter.aminmax()):
            if stored is not None:
                stored.file.read(stored.entry.key)
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"{base.reference}: {name} is not finite as {dtype}: pass --dtype float32, or fetch it again"
            )
