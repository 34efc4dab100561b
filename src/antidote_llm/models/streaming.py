"""Decoder layers that lie on the disk: one is in memory while it is used, and the next is read meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.loading import PartLoader

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
