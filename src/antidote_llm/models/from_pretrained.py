"""Loads a whole checkpoint with transformers, quantised or not; quantised weights are used under an adapter only."""

from __future__ import annotations

import importlib.metadata
import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from antidote_llm.choices import DtypeName
from antidote_llm.errors import UserError, first_line, setting
from antidote_llm.io.safetensors_files import FLOAT_BYTES
from antidote_llm.models.checkpoint import INDEX, Checkpoint
from antidote_llm.models.config import (
    BROKEN_CHECKPOINT,
    cannot_open,
    empty_model,
    incomplete,
    parsed_config,
    quiet_transformers,
)
from antidote_llm.models.tensor_names import ModelNames, TensorNames

_BITSANDBYTES = "bitsandbytes"


def require_not_quantised(checkpoint: Checkpoint, purpose: str) -> None:
    """Refuse a quantised checkpoint where its weights themselves are needed.

    Args:
        checkpoint: A whole model.
        purpose: What cannot be done with it, as in ``trained``.

    Raises:
        UserError: It is quantised.
    """
    if (name := checkpoint.quantisation) is not None:
        raise UserError(
            f"{checkpoint.reference}: quantised weights ({name}) cannot be {purpose}: use the checkpoint before "
            "quantisation"
        )


def quantiser_version(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what unpacks a checkpoint's weights, and its version, on which its numbers depend; empty for none."""
    if checkpoint.quantisation != _BITSANDBYTES:
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
    if (name := checkpoint.quantisation) != _BITSANDBYTES:
        raise UserError(
            f"{checkpoint.reference}: {setting('dtype')}: weights quantised by {name} compute in the type "
            "that they were made "
            f"for: leave {setting('dtype')} out"
        )
    for parameter in model.parameters():
        # Packed matrices are parameters of classes of their own.
        if type(parameter) is nn.Parameter and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def require_unpackable(checkpoint: Checkpoint, model: Any, names: TensorNames) -> None:
    """Refuse what transformers ignores: an unknown method, weights that are not packed, NaN among their scales.

    Raises:
        UserError: Names the method or the tensor.
    """
    settings: Any = checkpoint.config["quantization_config"]
    if not AutoHfQuantizer.supports_quant_method(dict(settings)):
        raise UserError(
            f"{checkpoint.reference}: quantised by {checkpoint.quantisation}, which transformers "
            f"{transformers.__version__} does not know: install one that does, or use the one before quantisation"
        )
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module).__module__.startswith(f"{_BITSANDBYTES}.") and type(weight) is nn.Parameter:
            raise UserError(
                f"{checkpoint.reference}: {name}.weight is not quantised, though config.json says so: take "
                "quantization_config out of it, or fetch the checkpoint before quantisation"
            )
    unpacked = {found.entry.key for name, _ in model.named_parameters() if (found := names.find(name)) is not None}
    for stored in names.all.values():
        if stored.entry.dtype in FLOAT_BYTES and stored.entry.key not in unpacked:
            stored.file.read(stored.entry.key)


_OF_THE_VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")
# The value of ``device`` for all GPUs together.
SPREAD = "spread"


def device_named(name: str) -> torch.device:
    """Return a device; for ``spread``, the first one.

    Raises:
        UserError: There is no such device.
    """
    if name in ("auto", SPREAD):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refusal = UserError(f"{setting('device')} {name}: not a device of this machine: use auto, cpu, cuda or spread")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise refusal from error
    if device.type == "meta":
        raise refusal
    return device


def load_whole(
    base: Checkpoint,
    dtype: DtypeName | torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    *,
    spread: bool = False,
) -> tuple[PreTrainedModel, ModelNames]:
    """Load a checkpoint whole; return the model and the names of the checkpoint's tensors in it.

    Args:
        base: The checkpoint.
        dtype: The type to load in.
        device: Where to.
        trust_remote_code: Whether to run Python code that comes with it.
        spread: Whether its layers are spread over all GPUs.

    Raises:
        UserError: transformers cannot open it, a tensor is missing, of another shape or not finite, or there is no room
            for it on the GPUs.
    """
    config, packed = parsed_config(base, trust_remote_code), base.quantisation
    empty_model(base, trust_remote_code)
    try:
        with quiet_transformers(), ExitStack() as stack:
            model, info = AutoModelForCausalLM.from_pretrained(
                _with_sound_index(base, stack),
                config=config,
                dtype="auto" if packed else _torch_dtype(dtype),
                device_map="auto" if spread else {"": device} if packed else None,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # Reported below, by name.
                ignore_mismatched_sizes=True,
            )
    except BROKEN_CHECKPOINT as error:
        base.require_unchanged()
        if not packed:
            raise cannot_open(base.reference, error) from error
        raise UserError(
            f"{base.reference}: quantised by {packed}, and transformers cannot open it "
            f"({first_line(error).rstrip('. ')}): install what reads it, or use the checkpoint before quantisation"
        ) from error
    if missing := sorted(map(str, info["missing_keys"])):
        raise incomplete(base, missing)
    if mismatched := sorted(info["mismatched_keys"]):
        name, *shapes = mismatched[0]
        stored, wanted = (" x ".join(map(str, shape)) for shape in shapes)
        fix = "fetch it again"
        if len(shapes[0]) == 2 and shapes[0][1:] == shapes[1][1:] and name.endswith(_OF_THE_VOCABULARY):
            fix = f"where tokens were added, set vocab_size to {shapes[0][0]} in config.json; otherwise fetch it again"
        raise UserError(
            f"{base.reference}: {name} is {stored}, by config.json it should be {wanted} ({len(mismatched)} tensors in "
            f"all): {fix}"
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    loaded.config.name_or_path = str(base.folder)
    if any(parameter.is_meta for parameter in loaded.parameters()):
        raise UserError(
            f"{base.reference}: does not fit on the GPUs: pass {setting('engine')} streaming {setting('device')} cuda"
        )
    if packed is None and not spread:
        loaded.to(device)
    elif packed is not None and isinstance(chosen := _torch_dtype(dtype), torch.dtype):
        cast_unpacked(loaded, chosen, base)
    names = ModelNames(base, loaded)
    _require_sound(base, loaded, names)
    return loaded, names


def _with_sound_index(base: Checkpoint, stack: ExitStack) -> Path:
    """Return the checkpoint's folder; where its index is without metadata, which transformers wants, links to it."""
    index = base.folder / INDEX
    if "model.safetensors" in base.weights or isinstance(json.loads(index.read_bytes()).get("metadata"), dict):
        return base.folder
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="antidote-index-")))
    for path in base.folder.iterdir():
        if path.name != INDEX:
            (folder / path.name).symlink_to(path.resolve())
    places = {key: name for name, file in base.weights.items() for key in file.entries}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return folder


def _torch_dtype(dtype: DtypeName | torch.dtype) -> torch.dtype | Literal["auto"]:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    named: torch.dtype = getattr(torch, dtype)
    return named


def _require_sound(base: Checkpoint, model: PreTrainedModel, names: TensorNames) -> None:
    """Refuse weights that are not floating-point numbers on the disk, or not finite ones in memory."""
    packed = base.quantisation is not None
    if packed:
        require_unpackable(base, model, names)
    for name, parameter in model.named_parameters():
        stored = names.find(name)
        if packed and not parameter.is_floating_point():
            continue
        if stored is not None and stored.entry.dtype not in FLOAT_BYTES and not packed:
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
                f"{base.reference}: {name} is not finite as {dtype}: pass {setting('dtype')} float32, or fetch it again"
            )
