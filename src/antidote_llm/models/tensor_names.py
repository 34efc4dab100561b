"""How the tensors that a model computes with are made of those that its files hold, as transformers makes them.

The one place that reads transformers' table of conversions: files may name a tensor otherwise, turn it around, or hold
every expert's matrices one by one where the model computes with all of them in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from antidote_llm.models.checkpoint import Checkpoint, StoredTensor, stored_tensors

Layout: TypeAlias = Literal["same", "turned", "listed", "other"]


@dataclass(frozen=True)
class Recipe:
    """How one tensor of the model is made.

    Attributes:
        layout: ``same``: as the one stored tensor is. ``turned``: its last two of three axes swapped. ``listed``: the
            tensors of each group stacked along a new first axis, and the groups joined along the second.
            ``other``: in a way that has no name here.
        groups: The stored tensors that it is made of, in the order that transformers takes them.
    """

    layout: Layout
    groups: tuple[tuple[StoredTensor, ...], ...]


def recipes(checkpoint: Checkpoint, model: PreTrainedModel) -> Mapping[str, Recipe]:
    """Return how every tensor of a model is made of a checkpoint's, by its name in the model.

    A tensor that is a second name of another, or that a conversion makes beside others, may be missing.

    Args:
        checkpoint: A checkpoint of the model's architecture.
        model: The model, with or without values in its parameters.
    """
    transforms, wanted = get_model_conversion_mapping(model), model.state_dict()
    stored = stored_tensors(checkpoint)
    collected: dict[str, dict[str | None, list[StoredTensor]]] = {}
    for key, name, pattern in model_names(stored, model, transforms):
        collected.setdefault(name, {}).setdefault(pattern, []).append(stored[key])
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    return {name: _recipe(found, tuple(wanted[name].shape), by_pattern) for name, found in collected.items()}


def names_in_model(checkpoint: Checkpoint, model: PreTrainedModel) -> Mapping[str, str]:
    """Return what a model calls each stored tensor that it computes with as it is, by key."""
    names = model_names(stored_tensors(checkpoint), model, get_model_conversion_mapping(model))
    return {key: name for key, name, pattern in names if pattern is None}


def computed_with(keys: Iterable[str], model: PreTrainedModel) -> set[str]:
    """Return those of some stored tensors that a model computes with."""
    return {key for key, *_ in model_names(keys, model, get_model_conversion_mapping(model))}


def missed(keys: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Leave out tensors that a model's class passes over, as those that predict further tokens: saving loses them."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    found = list(keys)
    passed_over = {key for key in found if any(re.search(pattern, key) for pattern in patterns)}
    # GPT-2's pattern of a mask is also that of a bias which it computes with.
    passed_over -= computed_with(passed_over, model)
    return [key for key in found if key not in passed_over]


def left_out(checkpoint: Checkpoint, model: PreTrainedModel) -> list[str]:
    """Return the stored tensors that a model does not compute with, though its class does not say so."""
    stored = stored_tensors(checkpoint)
    used = computed_with(stored, model)
    return missed([key for key in stored if key not in used], model)


def model_names(
    keys: Iterable[str], model: PreTrainedModel, transforms: Sequence[object]
) -> Iterator[tuple[str, str, str | None]]:
    """Yield stored tensors that a model computes with: key, name in the model, and the conversion's pattern, if any.

    What a model does not compute with is left out, as the masks of old files.

    Args:
        keys: What the files hold.
        model: The model, with or without values in its parameters.
        transforms: What transformers does with such files.
    """
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


def _recipe(
    found: Mapping[str | None, list[StoredTensor]], shape: tuple[int, ...], converters: Mapping[str, WeightConverter]
) -> Recipe:
    first = next(iter(found))
    if first is None:
        return Recipe("same" if len(found) == len(found[None]) == 1 else "other", tuple(map(tuple, found.values())))
    converter = converters[first]
    groups = tuple(tuple(found[pattern]) for pattern in converter.source_patterns if pattern in found)
    if len(groups) < len(found) or len(converter.target_patterns) > 1:
        return Recipe("other", groups)
    return Recipe(_layout(converter.operations, groups, shape), groups)


def _layout(
    operations: Iterable[object], groups: tuple[tuple[StoredTensor, ...], ...], shape: tuple[int, ...]
) -> Layout:
    steps = list(operations)
    if len(steps) == 1 and isinstance(turn := steps[0], Transpose) and {turn.dim0, turn.dim1} == {1, 2}:
        if [len(group) for group in groups] != [1] or len(shape) != 3:
            return "other"
        return "same" if turn.check_dims and groups[0][0].entry.shape == shape else "turned"
    stacked = bool(steps) and isinstance(steps[0], MergeModulelist) and steps[0].dim == 0
    joined = [
        isinstance(step, Concatenate) and step.dim == 1 and step.num_shards_attribute is None for step in steps[1:]
    ]
    if stacked and (joined == [True] or (not joined and len(groups) == 1)):
        return "listed"
    return "other"


_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


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
        self._stored = stored_tensors(checkpoint)
        self._prefix = f"{prefix}." if prefix else ""
        self._tied = {source: name for name, source in (tied or {}).items()} | dict(tied or {})
        self._in_model = in_model or {}
        self._keys = {self._in_model[key]: key for key in self._stored if key in self._in_model}

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, model: PreTrainedModel, in_model: Mapping[str, str] | None = None
    ) -> TensorNames:
        """Return the names of a checkpoint that has a model's architecture.

        Args:
            checkpoint: Where to look.
            model: A model of that configuration, with or without values, and without adapters.
            in_model: What the model calls the tensors of any files; of this checkpoint's where not given.
        """
        ties = getattr(model, "all_tied_weights_keys", None) or {}
        found = names_in_model(checkpoint, model) if in_model is None else in_model
        return cls(checkpoint, model.base_model_prefix, ties, found)

    def find(self, name: str) -> StoredTensor | None:
        """Return a tensor by its name in the model or in another checkpoint's files; None where there is none."""
        spellings = self._spellings(name)
        twins = [twin for known in spellings if known in self._tied for twin in self._spellings(self._tied[known])]
        return next((self._stored[key] for key in (*spellings, *twins) if key in self._stored), None)

    def _spellings(self, name: str) -> tuple[str, ...]:
        in_model = self._in_model.get(name, name)
        own = self._keys.get(in_model, name)
        return name, self._prefix + name, name.removeprefix(self._prefix), own, in_model

    @property
    def all(self) -> Mapping[str, StoredTensor]:
        """Every learned tensor by its key."""
        return self._stored


def without_layer_numbers(key: str) -> str:
    """Return a tensor's name with a star for each layer's number, as in ``model.layers.*.mlp.up_proj.bias``."""
    return _LAYER_NUMBER.sub("*", key)
