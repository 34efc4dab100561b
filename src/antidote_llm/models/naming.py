"""Names of tensors: in the open model, in a checkpoint's files, and in another checkpoint of the same model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.tensor_files import TensorEntry, TensorFile

# Computed, not learned: older versions of transformers saved them.
_CONSTANT = re.compile(r"\.rotary_emb\.inv_freq$|\.attn\.masked_bias$|\.attn\.bias$")
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor where it lies."""

    file_name: str
    file: TensorFile
    entry: TensorEntry


def stored_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Return every learned tensor of a checkpoint by its key."""
    return {
        key: StoredTensor(name, file, entry)
        for name, file in checkpoint.weights.items()
        for key, entry in file.entries.items()
        if not _is_constant(entry)
    }


class TensorNames:
    """Finds tensors of a checkpoint by name, whatever prefix its files leave out or add.

    Args:
        checkpoint: Where to look.
        prefix: The base model's name inside the causal language model, such as ``model`` or ``transformer``.
        tied: The name of the tensor that each tied one is a second name of; files may hold either.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str = "", tied: Mapping[str, str] | None = None) -> None:
        self._stored = stored_tensors(checkpoint)
        self._prefix = f"{prefix}." if prefix else ""
        self._tied = {source: name for name, source in (tied or {}).items()} | dict(tied or {})

    @classmethod
    def of(cls, checkpoint: Checkpoint, model: PreTrainedModel) -> TensorNames:
        """Return the names of a checkpoint that has the open model's architecture."""
        return cls(checkpoint, model.base_model_prefix, getattr(model, "all_tied_weights_keys", None) or {})

    def find(self, name: str) -> StoredTensor | None:
        """Return a tensor by its name in the model or in another checkpoint's files; None where there is none."""
        spellings = self._spellings(name)
        twins = [twin for known in spellings if known in self._tied for twin in self._spellings(self._tied[known])]
        return next((self._stored[key] for key in (*spellings, *twins) if key in self._stored), None)

    def _spellings(self, name: str) -> tuple[str, ...]:
        return name, self._prefix + name, name.removeprefix(self._prefix)

    @property
    def all(self) -> Mapping[str, StoredTensor]:
        """Every learned tensor by its key."""
        return self._stored


def _is_constant(entry: TensorEntry) -> bool:
    """Whether a tensor is a rotary embedding's frequencies or GPT-2's causal mask, not the bias of a layer."""
    return bool(_CONSTANT.search(entry.key)) and not (entry.key.endswith(".attn.bias") and len(entry.shape) != 4)


def without_layer_numbers(key: str) -> str:
    """Return a tensor's name with a star for each layer's number, as in ``model.layers.*.mlp.up_proj.bias``."""
    return _LAYER_NUMBER.sub("*", key)
