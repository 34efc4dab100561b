"""Names of tensors: in the open model, in a checkpoint's files, and in another checkpoint of the same model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedModel

from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.conversion import names_in_model
from antidote_llm.models.stored import StoredTensor, stored_tensors

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
