"""Pads rows into a batch whose loss counts the response alone.  Axes: B rows, T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

IGNORED = -100


class Example(TypedDict):
    """One row as the data loader hands it over."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Collator:
    """Pads on the right with tokens that are neither attended to nor learned.

    Attributes:
        pad_token_id: Any id of the vocabulary; it is masked out.
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, each [B, T]."""
        length = max(len(example["input_ids"]) for example in examples)
        input_ids_BT = torch.full((len(examples), length), self.pad_token_id)
        attention_mask_BT = torch.zeros_like(input_ids_BT)
        labels_BT = torch.full_like(input_ids_BT, IGNORED)
        for row, example in enumerate(examples):
            count = len(example["input_ids"])
            input_ids_BT[row, :count] = torch.tensor(example["input_ids"])
            attention_mask_BT[row, :count] = 1
            labels_BT[row, :count] = torch.tensor(example["labels"])
        return {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT, "labels": labels_BT}
