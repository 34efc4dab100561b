"""Learned tensors where they lie on the disk."""

from __future__ import annotations

import re
from dataclasses import dataclass

from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.tensor_files import TensorEntry, TensorFile

# Computed, not learned: older versions of transformers saved them.
_CONSTANT = re.compile(r"\.rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$")
_MASK_AXES = 4


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


def _is_constant(entry: TensorEntry) -> bool:
    """Whether a tensor is a rotary embedding's frequencies or a causal mask, not the bias of a layer."""
    is_bias = entry.key.endswith(".bias") and len(entry.shape) != _MASK_AXES
    return bool(_CONSTANT.search(entry.key)) and not is_bias
