"""Examples, and the batches that the data loader makes of them.  Axes: B rows, T tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from antidote_llm.errors import UserError
from antidote_llm.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from antidote_llm.data.rendering import TokenizedRow

IGNORED = -100
# The index of the blank row, which pads the last batch so that several processes get equal shares of it.
BLANK = -1

# One row: ``input_ids`` and ``labels``, and under further names the auxiliary rows that it carries.
Example: TypeAlias = dict[str, Any]
# What the collator returns: ``input_ids``, ``attention_mask`` and ``labels``, each [B, T], and nested batches.
Batch: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """The rows of a training, and a blank one at the index ``BLANK``."""

    rows: Sequence[Example]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return blank(self.rows[0]) if index == BLANK else self.rows[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)


@dataclass(frozen=True)
class Collator:
    """Pads on the right with tokens that are neither attended to nor learned."""

    # Any id of the vocabulary: it is masked out.
    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Return a batch, with a nested one for every auxiliary row that the examples carry."""
        import torch

        length = max(len(example["input_ids"]) for example in examples)
        input_ids_BT = torch.full((len(examples), length), self.pad_token_id)
        attention_mask_BT = torch.zeros_like(input_ids_BT)
        labels_BT = torch.full_like(input_ids_BT, IGNORED)
        for row, example in enumerate(examples):
            count = len(example["input_ids"])
            input_ids_BT[row, :count] = torch.tensor(example["input_ids"])
            attention_mask_BT[row, :count] = 1
            labels_BT[row, :count] = torch.tensor(example["labels"])
        batch: Batch = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT, "labels": labels_BT}
        for name in sorted(examples[0].keys() - {"input_ids", "labels"}):
            batch[name] = self([example[name] for example in examples])
        return batch


def valid_tokens(batch: Batch) -> Tensor:
    """Return which tokens are neither pads nor of a blank row: bool, [B, T]."""
    learned_B1: Tensor = (batch["labels"] != IGNORED).any(1, keepdim=True)
    attended_BT: Tensor = batch["attention_mask"].bool()
    return attended_BT & learned_B1


def label_tokens(batch: Batch) -> Tensor:
    """Return how many tokens count in the loss: a token is predicted from those before it, so the first never is."""
    predicted_BT: Tensor = batch["labels"][:, 1:] != IGNORED
    return predicted_BT.sum()


def model_inputs(batch: Batch) -> Batch:
    """Return what a model's forward pass takes of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def blank(example: Example) -> Example:
    """Return a row of an example's form from which nothing is learned."""
    nested = {name: blank(value) for name, value in example.items() if isinstance(value, dict)}
    return {"input_ids": example["input_ids"][:1], "labels": [IGNORED], **nested}


def examples_of(rows: Sequence[TokenizedRow], settings: TrainingSettings, origins: Sequence[str] = ()) -> list[Example]:
    """Return one example a row, cut to ``max_length``; where only the response is learned, prompt labels are ignored.

    Args:
        rows: Token ids.
        settings: How much of a row is learned.
        origins: Where each row comes from, for errors; empty where that is not known.

    Raises:
        UserError: There are no rows, or in some row no token is left to learn from.
    """
    if not rows:
        raise UserError("there are no rows to train on")
    examples: list[Example] = []
    for index, row in enumerate(rows):
        ids = row.input_ids[: settings.max_length]
        prompt_length = min(row.response_start, len(ids)) if settings.learn_from == "response" else 0
        labels = [IGNORED] * prompt_length + ids[prompt_length:]
        # The first token of a row has nothing before it that could predict it.
        if all(label == IGNORED for label in labels[1:]):
            where = (origins[index] if origins else "") or f"row {index}"
            raise UserError(
                f"{where} has no response token within max_length {settings.max_length}: raise it or drop the row"
            )
        examples.append({"input_ids": ids, "labels": labels})
    return examples


def carrying(examples: Sequence[Example], name: str, others: Sequence[Example], seed: int) -> list[Example]:
    """Return the examples, each with an auxiliary one; these come in random order, again and again.

    Args:
        examples: The rows.
        name: The key of the auxiliary row in each example, and of their batch.
        others: The auxiliary rows; those beyond the number of examples are not used.
        seed: Decides the random order.
    """
    order = random.Random(seed).sample(range(len(others)), len(others))
    return [{**example, name: others[order[index % len(order)]]} for index, example in enumerate(examples)]
