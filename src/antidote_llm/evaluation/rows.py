"""Prompts on their way to an answer, and how far they may go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from antidote_llm.errors import UserError


@dataclass(slots=True)
class Row:
    """One prompt, and what the model has answered so far."""

    prompt: tuple[int, ...]
    answer: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """The tokens that the model has to read to go on."""
        return [*self.prompt, *self.answer]

    @property
    def length(self) -> int:
        """How many tokens that is."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where answers end, and how much is held at once.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        eos_ids: Tokens that end an answer.
        pad_id: Any token id.
        batch_size: Most rows at once.
        batch_tokens: Most tokens at once, padding included.
    """

    max_new_tokens: int
    eos_ids: Collection[int]
    pad_id: int
    batch_size: int
    batch_tokens: int

    def hear(self, row: Row, token: int) -> bool:
        """Take a row's next token, and say whether its answer goes on."""
        if token in self.eos_ids:
            return False
        row.answer.append(token)
        return len(row.answer) < self.max_new_tokens


def longest_first(rows: Iterable[Row]) -> list[Row]:
    """Sort rows, so that those of like length stand together."""
    return sorted(rows, key=lambda row: row.length, reverse=True)


def padded(rows_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left-padded token ids and their mask, both (rows, tokens)."""
    width = max(map(len, rows_ids))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows_ids]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows_ids]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def half_of(tried: Sequence[Row], error: torch.OutOfMemoryError) -> int:
    """Return how many rows to try next.

    Raises:
        UserError: There was but one.
    """
    if len(tried) == 1:
        raise UserError(
            f"a prompt of {tried[0].length} tokens does not fit into the device's memory: "
            "lower --max-new-tokens or leave the prompt out"
        ) from error
    return len(tried) // 2
