"""Loads parts of a model as transformers loads the whole of it: the same names, conversions and types.

The one place that calls transformers' own loading, a semi-private function of it, so that nothing is written twice; how
files name tensors is told by :mod:`antidote_llm.models.tensor_names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_COPY, mmap

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from antidote_llm.errors import DefectError, UserError, changed_meanwhile
from antidote_llm.io.safetensors_files import DTYPES, TensorFile
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.config import empty_model, incomplete, quiet_transformers
from antidote_llm.models.tensor_names import model_names

# Bytes of the widest registers: how far from a multiple of it a tensor begins may decide how kernels round.
_ALIGNMENT = 64
# Buffers may be of any type; parameters are not.
_ANY_DTYPES = {**DTYPES, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
_ANY_DTYPES |= {"U8": torch.uint8, "BOOL": torch.bool}


class PartLoader:
    """A skeleton of a model, into which parts of a checkpoint are loaded.

    Args:
        checkpoint: A whole model's folder.
        dtype: The type to load in; None for the checkpoint's own.
        trust_remote_code: Whether to run Python code that comes with it.

    Raises:
        UserError: transformers makes no model of its configuration, or a tensor is missing or of integers.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype | None, trust_remote_code: bool = False) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype or _own_dtype(checkpoint)
        self._trust_remote_code = trust_remote_code
        self._loader = self.skeleton()
        mapping = get_model_conversion_mapping(self._loader)
        self._settings = LoadStateDictConfig(
            dtype=self._dtype, dtype_plan=self._loader._get_dtype_plan(self._dtype), weight_mapping=mapping
        )
        self._places = _places(checkpoint, self._loader, mapping)
        self._require_complete()

    def skeleton(self) -> PreTrainedModel:
        """Return the model without values in its parameters, which lie on the meta device; buffers are computed."""
        made = empty_model(self._checkpoint, self._trust_remote_code, self._dtype)
        # As when a whole model is loaded: buffers are computed anew, in full precision whatever the model's type.
        for module in made.modules():
            module._is_hf_initialized = False
            for name, parameter in module._parameters.items():
                # Some ways to draw numbers take no notice of where they are asked to lie.
                module._parameters[name] = (
                    None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)
                )
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cpu")
        made.initialize_weights()
        made.tie_weights()
        return made.eval().requires_grad_(False)

    def stored_bytes(self, prefix: str) -> int:
        """Return what the part under a name takes on the disk."""
        return sum(file.entries[key].end - file.entries[key].begin for file, key in self._under([prefix]))

    def loaded_bytes(self, prefix: str) -> int:
        """Return what the part under a name takes in memory, in the type that it is loaded in."""
        return sum(each.numel() * each.element_size() for each in self._loader.get_submodule(prefix).parameters())

    def load(self, prefixes: Sequence[str]) -> dict[str, Tensor]:
        """Return parameters and persistent buffers under some names of modules, by name.

        Raises:
            UserError: A tensor is not of the shape that the configuration says, or is not finite.
        """
        state = _read_as_mapped(self._under(prefixes))
        with quiet_transformers():
            info, _ = convert_and_load_state_dict_in_model(self._loader, state, self._settings)
        if info.mismatched_keys or info.conversion_errors:
            name = str(next(iter([*(key for key, *_ in info.mismatched_keys), *info.conversion_errors])))
            raise UserError(f"{self._checkpoint.reference}: {name} does not fit config.json: fetch it again")
        found = {name: values for prefix in prefixes for name, values in self._taken(prefix)}
        for name, values in found.items():
            self._require_finite(name, values, prefixes)
        return found

    def _taken(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Take what was loaded out of the skeleton, which is empty again afterwards."""
        for name, module in self._loader.get_submodule(prefix).named_modules(prefix=prefix):
            for own_name, parameter in list(module._parameters.items()):
                if parameter is not None and not parameter.is_meta:
                    yield f"{name}.{own_name}", parameter.data
                    module._parameters[own_name] = nn.Parameter(parameter.data.to("meta"), requires_grad=False)
            for own_name, buffer in module._buffers.items():
                if buffer is not None and own_name not in module._non_persistent_buffers_set:
                    yield f"{name}.{own_name}", buffer

    def _require_finite(self, name: str, values: Tensor, prefixes: Sequence[str]) -> None:
        if values.is_floating_point() and values.numel() and not all(bool(end.isfinite()) for end in values.aminmax()):
            # Names the file that is broken, where it is not the type that is too narrow.
            for file, key in self._under(prefixes):
                if file.entries[key].dtype in DTYPES:
                    file.read(key)
            dtype = str(values.dtype).removeprefix("torch.")
            reference = self._checkpoint.reference
            raise UserError(f"{reference}: {name} is not finite as {dtype}: pass --dtype float32, or fetch it again")

    def _under(self, prefixes: Sequence[str]) -> list[tuple[TensorFile, str]]:
        starts = tuple(f"{prefix}." for prefix in prefixes)
        return [place for name, places in self._places.items() if name.startswith(starts) for place in places]

    def _require_complete(self) -> None:
        tied = set(getattr(self._loader, "all_tied_weights_keys", None) or {})
        wanted = {name for name, _ in self._loader.named_parameters()} - tied
        if missing := sorted(wanted - self._places.keys()):
            raise incomplete(self._checkpoint, missing)
        for name in wanted:
            for entry in (file.entries[key] for file, key in self._places[name]):
                if entry.dtype not in DTYPES:
                    raise UserError(
                        f"{self._checkpoint.reference}: {entry.key} is {entry.dtype}: quantised weights are not "
                        "supported yet: use the checkpoint before quantisation"
                    )


def _read_as_mapped(places: Sequence[tuple[TensorFile, str]]) -> dict[str, Tensor]:
    """Read tensors into memory that is aligned as in the files' maps, whence transformers takes whole models.

    They share one piece of memory, which goes back to the system as soon as none of them is used any more.

    Raises:
        UserError: A file ends before a tensor does.
    """
    sizes = [file.entries[key].end - file.entries[key].begin for file, key in places]
    if not places:
        return {}
    # Private pages of its own, and none of a heap's, which would keep them.
    pages = mmap(-1, sum(sizes) + _ALIGNMENT * len(sizes), access=ACCESS_COPY)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    found, free = {}, 0
    for (file, key), size in zip(places, sizes, strict=True):
        entry = file.entries[key]
        start = free + (entry.begin - memory.data_ptr() - free) % _ALIGNMENT
        data, free = memory[start : start + size], start + size
        with file.stream() as stream:
            stream.seek(entry.begin)
            if stream.readinto(data.numpy().data) != size:
                raise changed_meanwhile(file.path)
        dtype = _ANY_DTYPES[entry.dtype]
        # A header whose length is no multiple of the items' moves all that follows off their places.
        found[key] = (data.clone() if start % dtype.itemsize else data).view(dtype).reshape(entry.shape)
    return found


def _own_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the type that ``dtype="auto"`` means to transformers: the configuration's, else that of the files."""
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if isinstance(named, str) and isinstance(found := getattr(torch, named.removeprefix("torch."), None), torch.dtype):
        return found
    entries = next(iter(checkpoint.weights.values())).entries.values()
    return next((DTYPES[entry.dtype] for entry in entries if entry.dtype in DTYPES), torch.float32)


def _places(
    checkpoint: Checkpoint, model: PreTrainedModel, transforms: Sequence[object]
) -> Mapping[str, list[tuple[TensorFile, str]]]:
    """Return the stored tensors that every tensor of the model is made from."""
    files = {key: file for file in checkpoint.weights.values() for key in file.entries}
    found: dict[str, list[tuple[TensorFile, str]]] = {}
    for key, name, _ in model_names(files, model, transforms):
        found.setdefault(name, []).append((files[key], key))
    return found


_WRAPPER = re.compile(r"(?<=\.)base_layer\.")


@dataclass(frozen=True)
class LayerStream:
    """The decoder layers of a model whose other parts are in memory.

    Attributes:
        modules: The decoder layers, in order, adapters on them; their own parameters lie on the meta device.
        names: What each is called in the model without adapters.
        loader: Reads them.
        device: Where they compute.
    """

    modules: tuple[nn.Module, ...]
    names: tuple[str, ...]
    loader: PartLoader
    device: torch.device

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """What each layer takes on the disk."""
        return tuple(map(self.loader.stored_bytes, self.names))

    @property
    def held_bytes(self) -> tuple[int, ...]:
        """What each layer takes in memory."""
        return tuple(map(self.loader.loaded_bytes, self.names))

    @contextmanager
    def loaded(self, indices: Sequence[int]) -> Iterator[Iterator[int]]:
        """Go through layers: each is in memory until the next is asked for, which is read meanwhile."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            waiting = [reader.submit(self._read, index) for index in indices[:1]]

            def each() -> Iterator[int]:
                for place, index in enumerate(indices):
                    values = waiting.pop().result()
                    waiting.extend(reader.submit(self._read, later) for later in indices[place + 1 : place + 2])
                    with held(self.modules[index], self.names[index], values):
                        del values
                        yield index

            yield each()

    def _read(self, index: int) -> dict[str, Tensor]:
        return {name: values.to(self.device) for name, values in self.loader.load([self.names[index]]).items()}


@contextmanager
def held(module: nn.Module, prefix: str, values: dict[str, Tensor]) -> Iterator[None]:
    """Give a part of a model, adapters on it or not, its own parameters and buffers for the length of the block.

    Args:
        module: The part.
        prefix: What it is called in the model without adapters.
        values: By name in that model; emptied, so that nothing else holds on to them.

    Raises:
        DefectError: A parameter was left without values.
    """
    empty = fill(module, prefix, values)
    values.clear()
    if left := [name for name, parameter in module.named_parameters(prefix=prefix) if parameter.is_meta]:
        raise DefectError(f"{left[0]} was not loaded")
    try:
        yield
    finally:
        for child, own_name, parameter in empty:
            child._parameters[own_name] = parameter


def fill(module: nn.Module, prefix: str, values: dict[str, Tensor]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give a part of a model parameters and buffers by name, and return the empty parameters that they replace."""
    empty: list[tuple[nn.Module, str, nn.Parameter]] = []
    for name, child in module.named_modules(prefix=prefix):
        plain = _WRAPPER.sub("", f"{name}." if name else "")
        for own_name, parameter in child._parameters.items():
            if parameter is not None and parameter.is_meta and plain + own_name in values:
                empty.append((child, own_name, parameter))
                child._parameters[own_name] = nn.Parameter(values[plain + own_name], requires_grad=False)
        for own_name, buffer in child._buffers.items():
            child._buffers[own_name] = values.get(plain + own_name, buffer)
    return empty


def decoder_layers(model: PreTrainedModel | PeftModel, reference: str) -> tuple[str, nn.ModuleList]:
    """Return the list of a model's decoder layers and its name without adapters.

    It is the longest that lies in no other, and in the part that reads text, where a model has other parts.

    Raises:
        UserError: There is none.
    """
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    text = set(bare.get_decoder().modules())
    lists: dict[str, nn.ModuleList] = {}
    for name, module in bare.named_modules():
        if module in text and isinstance(module, nn.ModuleList) and not any(name.startswith(f"{o}.") for o in lists):
            lists[name] = module
    if not lists:
        raise UserError(f"{reference}: no list of decoder layers was found: this model cannot be repaired")
    longest = max(lists, key=lambda name: len(lists[name]))
    return longest, lists[longest]


def beside(model: PreTrainedModel, stack: str) -> list[str]:
    """Return the names of the parts of a model that its decoder computes with beside its layers.

    Args:
        model: A model without adapters.
        stack: The name of its list of decoder layers.
    """
    found, outer = [], model.base_model_prefix if hasattr(model, model.base_model_prefix) else ""
    for step in stack.removeprefix(f"{outer}.").split("."):
        start = f"{outer}." if outer else ""
        found += [f"{start}{name}" for name, _ in model.get_submodule(outer).named_children() if name != step]
        outer = f"{start}{step}"
    return found
