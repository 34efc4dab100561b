"""How a model's tensors are made from those that its files hold, and how tensors are found by name.

Files may name a tensor otherwise, transpose it, or hold every expert's matrices one by one where the model computes
with all of them in one tensor. transformers has a table of these conversions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from transformers import PreTrainedModel

from antidote_llm.models.checkpoint import Checkpoint, StoredTensor
from antidote_llm.models.transformers_private import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    conversions,
    ignored_tensors,
    names_in_model,
    tied_names,
)

Layout: TypeAlias = Literal["same", "transposed", "stacked", "other"]


@dataclass(frozen=True)
class TensorSource:
    """How one tensor of the model is made.

    Attributes:
        layout: ``same``: as the one stored tensor is. ``transposed``: its last two of three axes swapped. ``stacked``:
            the tensors of each group stacked along a new first axis, and the groups joined along the second.
            ``other``: in any other way.
        groups: The stored tensors that it is made from, in the order in which transformers reads them.
    """

    layout: Layout
    groups: tuple[tuple[StoredTensor, ...], ...]


def tensor_sources(checkpoint: Checkpoint, model: PreTrainedModel) -> Mapping[str, TensorSource]:
    """Return how every tensor of a model is made from a checkpoint's, by its name in the model.

    A tensor that is a second name of another, or one of several that a conversion makes, may be missing.

    Args:
        checkpoint: A checkpoint of the model's architecture.
        model: The model, with or without values in its parameters.
    """
    wanted = model.state_dict()
    collected: dict[str, dict[str | None, list[StoredTensor]]] = {}
    for key, name, pattern in names_in_model(checkpoint.tensors, model):
        collected.setdefault(name, {}).setdefault(pattern, []).append(checkpoint.tensors[key])
    converters = [transform for transform in conversions(model) if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    return {name: _source_of(found, tuple(wanted[name].shape), by_pattern) for name, found in collected.items()}


def _source_of(
    found: Mapping[str | None, list[StoredTensor]], shape: tuple[int, ...], converters: Mapping[str, WeightConverter]
) -> TensorSource:
    first = next(iter(found))
    if first is None:
        return TensorSource(
            "same" if len(found) == len(found[None]) == 1 else "other", tuple(map(tuple, found.values()))
        )
    converter = converters[first]
    groups = tuple(tuple(found[pattern]) for pattern in converter.source_patterns if pattern in found)
    if len(groups) < len(found) or len(converter.target_patterns) > 1:
        return TensorSource("other", groups)
    return TensorSource(_layout(converter.operations, groups, shape), groups)


def _layout(
    operations: Iterable[object], groups: tuple[tuple[StoredTensor, ...], ...], shape: tuple[int, ...]
) -> Layout:
    steps = list(operations)
    if len(steps) == 1 and isinstance(turn := steps[0], Transpose) and {turn.dim0, turn.dim1} == {1, 2}:
        if [len(group) for group in groups] != [1] or len(shape) != 3:
            return "other"
        return "same" if turn.check_dims and groups[0][0].entry.shape == shape else "transposed"
    stacked = bool(steps) and isinstance(steps[0], MergeModulelist) and steps[0].dim == 0
    joined = [
        isinstance(step, Concatenate) and step.dim == 1 and step.num_shards_attribute is None for step in steps[1:]
    ]
    if stacked and (joined == [True] or (not joined and len(groups) == 1)):
        return "stacked"
    return "other"


class TensorNames:
    """Finds tensors of a checkpoint by name, whatever prefix its files leave out or add, or however they name it.

    Args:
        checkpoint: Where to look.
        prefix: The base model's name inside the causal language model, such as ``model`` or ``transformer``.
        tied: The name of the tensor that each tied one is a second name of; files may hold either.
        in_model: What the model calls tensors that files may name otherwise, by their names in any files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prefix: str = "",
        tied: Mapping[str, str] | None = None,
        in_model: Mapping[str, str] | None = None,
    ) -> None:
        self.all = checkpoint.tensors
        self.in_model = in_model or {}
        self.tied = tied or {}
        self._prefix = f"{prefix}." if prefix else ""
        self._twins = {source: name for name, source in self.tied.items()} | dict(self.tied)
        self._keys = {self.in_model[key]: key for key in self.all if key in self.in_model}

    def find(self, name: str) -> StoredTensor | None:
        """Return a tensor by its name in the model or in another checkpoint's files; None if there is none."""
        spellings = self._spellings(name)
        twins = [twin for known in spellings if known in self._twins for twin in self._spellings(self._twins[known])]
        return next((self.all[key] for key in (*spellings, *twins) if key in self.all), None)

    def _spellings(self, name: str) -> tuple[str, ...]:
        in_model = self.in_model.get(name, name)
        own = self._keys.get(in_model, name)
        return name, self._prefix + name, name.removeprefix(self._prefix), own, in_model


class ModelNames(TensorNames):
    """The names of a checkpoint's tensors in the model of its own configuration.

    Args:
        checkpoint: Where to look.
        model: That model, with or without values, and without adapters.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        found = list(names_in_model(checkpoint.tensors, model))
        in_model = {key: name for key, name, pattern in found if pattern is None}
        super().__init__(checkpoint, model.base_model_prefix, tied_names(model), in_model)
        self._used = {key for key, *_ in found}
        self._ignored = ignored_tensors(model)

    def with_names(self, checkpoint: Checkpoint, in_model: Mapping[str, str]) -> TensorNames:
        """Return the names of a checkpoint with the same prefix and ties, and names in the model from other files."""
        return TensorNames(checkpoint, self._prefix.removesuffix("."), self.tied, in_model)

    @property
    def left_out(self) -> list[str]:
        """The keys of the stored tensors that the model does not compute with, though its class does not say so."""
        return self.needed(key for key in self.all if key not in self._used)

    def needed(self, keys: Iterable[str]) -> list[str]:
        """Leave out tensors that the model's class ignores, such as those that predict further tokens."""
        # GPT-2's pattern of a mask is also that of a bias which it computes with.
        return [key for key in keys if key in self._used or not any(re.search(each, key) for each in self._ignored)]
