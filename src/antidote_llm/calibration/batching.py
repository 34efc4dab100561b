"""The plan of micro-batches: length-sorted, under a budget of padded tokens, the same for the same rows.

Legend: B rows of a batch, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from antidote_llm.calibration.moments import TokenPolicy
from antidote_llm.data.rendering import TokenizedRow

Rows: TypeAlias = tuple[TokenizedRow, ...]
# As many processes can share the work at most.
SHARES = 16


@dataclass(frozen=True)
class MicroBatch:
    """Padded rows: token ids, which positions are real, which are counted, and each token's position in its row."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    counted_BT: Tensor
    position_ids_BT: Tensor


def counted_tokens(row: TokenizedRow, policy: TokenPolicy) -> range:
    """Return the positions of a row that a token policy counts."""
    if policy == "prompt":
        return range(row.response_start)
    return range(row.response_start if policy == "response" else 0, len(row.input_ids))


def batch_plan(rows: Sequence[TokenizedRow], batch_tokens: int, batch_rows: int | None = None) -> list[Rows]:
    """Put neighbours in length together, at most ``batch_tokens`` padded tokens and ``batch_rows`` rows."""
    plan: list[Rows] = []
    batch: list[TokenizedRow] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        if batch and ((len(batch) + 1) * len(row.input_ids) > batch_tokens or len(batch) == batch_rows):
            plan.append(tuple(batch))
            batch = []
        batch.append(row)
    return [*plan, tuple(batch)] if batch else plan


def padded_tokens(batch: Rows) -> int:
    """Return how many positions a batch takes, pads included."""
    return len(batch) * max(len(row.input_ids) for row in batch)


def shares(plan: Sequence[Rows], count: int = SHARES) -> list[list[int]]:
    """Cut a plan into shares of about equal size, the same for the same plan: the places of each share's batches.

    Every share is summed on its own, and then all in order: the sums are the same bits however many processes there
    are, and wherever a run was cut off.
    """
    found: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for place in sorted(range(len(plan)), key=lambda place: -padded_tokens(plan[place])):
        least = filled.index(min(filled))
        found[least].append(place)
        filled[least] += padded_tokens(plan[place])
    return found


def padded(batch: Rows, policy: TokenPolicy, padding_side: Literal["left", "right"] = "right") -> MicroBatch:
    """Return a batch as tensors."""
    length = max(len(row.input_ids) for row in batch)
    input_ids_BT = torch.zeros(len(batch), length, dtype=torch.long)
    attention_mask_BT = torch.zeros(len(batch), length, dtype=torch.long)
    counted_BT = torch.zeros(len(batch), length, dtype=torch.bool)
    for index, row in enumerate(batch):
        start = length - len(row.input_ids) if padding_side == "left" else 0
        stop = start + len(row.input_ids)
        input_ids_BT[index, start:stop] = torch.tensor(row.input_ids)
        attention_mask_BT[index, start:stop] = 1
        counted = counted_tokens(row, policy)
        counted_BT[index, start + counted.start : start + counted.stop] = True
    position_ids_BT = (attention_mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    return MicroBatch(input_ids_BT, attention_mask_BT, counted_BT, position_ids_BT)
