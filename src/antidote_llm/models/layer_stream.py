"""Loads parts of a model, such as one decoder layer, as transformers loads the whole: names, conversions and types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_COPY, mmap

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from antidote_llm.errors import DefectError, UserError, changed_meanwhile, setting
from antidote_llm.io.safetensors_files import FLOAT_BYTES, TensorFile
from antidote_llm.io.torch_tensors import DTYPES, FLOAT_DTYPES
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.config import empty_model, incomplete, quiet_transformers
from antidote_llm.models.torch_private import computed_buffers, own_buffers, own_parameters
from antidote_llm.models.transformers_private import (
    compute_buffers_anew,
    load_tensors,
    loading_settings,
    names_in_model,
    tied_names,
)

# Bytes of the widest registers: how far from a multiple of it a tensor begins may decide how kernels round.
_ALIGNMENT = 64


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
        self._settings = loading_settings(self._loader, self._dtype)
        self._places = _places(checkpoint, self._loader)
        self._require_complete()

    def skeleton(self) -> PreTrainedModel:
        """Return the model with its parameters on the meta device, without values; buffers are computed."""
        made = empty_model(self._checkpoint, self._trust_remote_code, self._dtype)
        for module in made.modules():
            parameters, buffers = own_parameters(module), own_buffers(module)
            for name, parameter in parameters.items():
                # Some ways to draw random numbers ignore the device that is asked for.
                parameters[name] = (
                    None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)
                )
            for name, buffer in buffers.items():
                buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cpu")
        # As when a whole model is loaded: in full precision, whatever the model's type.
        compute_buffers_anew(made)
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
            unfitting = load_tensors(self._loader, state, self._settings)
        if unfitting:
            raise UserError(f"{self._checkpoint.reference}: {unfitting[0]} does not fit config.json: fetch it again")
        found = {name: values for prefix in prefixes for name, values in self._taken(prefix)}
        for name, values in found.items():
            self._require_finite(name, values, prefixes)
        return found

    def _taken(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Move what was loaded out of the skeleton, which is empty again afterwards."""
        for name, module in self._loader.get_submodule(prefix).named_modules(prefix=prefix):
            parameters = own_parameters(module)
            for own_name, parameter in list(parameters.items()):
                if parameter is not None and not parameter.is_meta:
                    yield f"{name}.{own_name}", parameter.data
                    parameters[own_name] = nn.Parameter(parameter.data.to("meta"), requires_grad=False)
            for own_name, buffer in own_buffers(module).items():
                if buffer is not None and own_name not in computed_buffers(module):
                    yield f"{name}.{own_name}", buffer

    def _require_finite(self, name: str, values: Tensor, prefixes: Sequence[str]) -> None:
        if values.is_floating_point() and values.numel() and not all(bool(end.isfinite()) for end in values.aminmax()):
            # Raises the error that names the broken file, unless the type is too narrow.
            for file, key in self._under(prefixes):
                if file.entries[key].dtype in FLOAT_BYTES:
                    file.read(key)
            dtype = str(values.dtype).removeprefix("torch.")
            reference = self._checkpoint.reference
            raise UserError(
                f"{reference}: {name} is not finite as {dtype}: pass {setting('dtype')} float32, or fetch it again"
            )

    def _under(self, prefixes: Sequence[str]) -> list[tuple[TensorFile, str]]:
        starts = tuple(f"{prefix}." for prefix in prefixes)
        return [place for name, places in self._places.items() if name.startswith(starts) for place in places]

    def _require_complete(self) -> None:
        wanted = {name for name, _ in self._loader.named_parameters()} - tied_names(self._loader).keys()
        if missing := sorted(wanted - self._places.keys()):
            raise incomplete(self._checkpoint, missing)
        for name in wanted:
            for entry in (file.entries[key] for file, key in self._places[name]):
                if entry.dtype not in FLOAT_BYTES:
                    raise UserError(
                        f"{self._checkpoint.reference}: {entry.key} is {entry.dtype}: quantised weights are not "
                        "supported yet: use the checkpoint before quantisation"
                    )


def _read_as_mapped(places: Sequence[tuple[TensorFile, str]]) -> dict[str, Tensor]:
    """Read tensors into memory that is aligned as in a memory map of the files, from which transformers loads models.

    They share one piece of memory, which is freed as soon as none of them is used any more.
    """
    sizes = [file.entries[key].end - file.entries[key].begin for file, key in places]
    if not places:
        return {}
    # Separate pages, not of the heap, which would keep them.
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
        dtype = DTYPES[entry.dtype]
        # A header whose length is no multiple of the items' size misaligns all that follows.
        found[key] = (data.clone() if start % dtype.itemsize else data).view(dtype).reshape(entry.shape)
    return found


def _own_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the type that ``dtype="auto"`` means to transformers: the configuration's, else that of the files."""
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if isinstance(named, str) and isinstance(found := getattr(torch, named.removeprefix("torch."), None), torch.dtype):
        return found
    entries = next(iter(checkpoint.weights.values())).entries.values()
    return next((FLOAT_DTYPES[entry.dtype] for entry in entries if entry.dtype in FLOAT_BYTES), torch.float32)


def _places(checkpoint: Checkpoint, model: PreTrainedModel) -> Mapping[str, list[tuple[TensorFile, str]]]:
    """Return the stored tensors that every tensor of the model is made from."""
    files = {key: file for file in checkpoint.weights.values() for key in file.entries}
    found: dict[str, list[tuple[TensorFile, str]]] = {}
    for key, name, _ in names_in_model(files, model):
        found.setdefault(name, []).append((files[key], key))
    return found


_WRAPPER = re.compile(r"(?<=\.)base_layer\.")


@dataclass(frozen=True)
class LayerStream:
    """The decoder layers of a model whose other parts are in memory.

    Attributes:
        modules: The decoder layers, in order, adapters on them; their own parameters are on the meta device.
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
        """Iterate over layers: each is in memory until the next is asked for, which is read ahead."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            waiting = [reader.submit(self._read, index) for index in indices[:1]]

            def each() -> Iterator[int]:
                for place, index in enumerate(indices):
                    values = waiting.pop().result()
                    waiting.extend(reader.submit(self._read, later) for later in indices[place + 1 : place + 2])
                    with with_values(self.modules[index], self.names[index], values):
                        del values
                        yield index

            yield each()

    def _read(self, index: int) -> dict[str, Tensor]:
        return {name: values.to(self.device) for name, values in self.loader.load([self.names[index]]).items()}


@contextmanager
def with_values(module: nn.Module, prefix: str, values: dict[str, Tensor]) -> Iterator[None]:
    """Give a part of a model, adapters on it or not, its own parameters and buffers for the length of the block.

    Args:
        module: The part.
        prefix: What it is called in the model without adapters.
        values: By name in that model; emptied, so that no other reference keeps them.

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
            own_parameters(child)[own_name] = parameter


def fill(module: nn.Module, prefix: str, values: dict[str, Tensor]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give a part of a model parameters and buffers by name, and return the empty parameters that they replace."""
    empty: list[tuple[nn.Module, str, nn.Parameter]] = []
    for name, child in module.named_modules(prefix=prefix):
        plain = _WRAPPER.sub("", f"{name}." if name else "")
        parameters, buffers = own_parameters(child), own_buffers(child)
        for own_name, parameter in parameters.items():
            if parameter is not None and parameter.is_meta and plain + own_name in values:
                empty.append((child, own_name, parameter))
                parameters[own_name] = nn.Parameter(values[plain + own_name], requires_grad=False)
        for own_name, buffer in buffers.items():
            buffers[own_name] = values.get(plain + own_name, buffer)
    return empty


def parts_without_layers(model: PreTrainedModel, stack: str) -> list[str]:
    """Return the names of the parts of a model's decoder other than its layers.

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
