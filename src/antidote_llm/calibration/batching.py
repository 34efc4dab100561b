"""The plan of micro-batches: length-sorted, under a budget of padded tokens, the same for the same rows.

Legend: B rows of a batch, T positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from antidote_llm.calibration.input_hooks import Heard
from antidote_llm.calibration.moments import MomentAccumulator
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.choices import TokenPolicy
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.io.processes import agreed, process_count, process_rank

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


@dataclass(frozen=True)
class ShardedBatches:
    """Micro-batches, cut into shares that are summed on their own.

    Attributes:
        plan: The rows of every micro-batch.
        shares: The places of each share's micro-batches.
        settings: How they are padded and counted.
        heard: Is told the rows of a micro-batch, the names of sites that share an input, and its sums of squares by
            row.
    """

    plan: Sequence[Rows]
    shares: Sequence[Sequence[int]]
    settings: CalibrationSettings
    heard: Callable[[Rows, Sequence[str], Tensor], None] | None = None

    @classmethod
    def of(
        cls,
        plan: Sequence[Rows],
        settings: CalibrationSettings,
        heard: Callable[[Rows, Sequence[str], Tensor], None] | None = None,
    ) -> ShardedBatches:
        """Cut a plan into shares."""
        return cls(plan, shares(plan), settings, heard)

    def listener(self, place: int) -> Heard | None:
        """Return who is told what the sites see of a micro-batch."""
        return None if self.heard is None else partial(self.heard, self.plan[place])

    @property
    def owners(self) -> list[int]:
        """Which process runs each share: the largest goes to whoever has least."""
        sizes = [sum(padded_tokens(self.plan[place]) for place in share) for share in self.shares]
        filled, found = [0] * process_count(), [0] * len(sizes)
        for share in sorted(range(len(sizes)), key=lambda share: -sizes[share]):
            found[share] = filled.index(min(filled))
            filled[found[share]] += sizes[share]
        return found

    @property
    def own_shares(self) -> list[int]:
        """The shares that this process runs, in order; none without rows."""
        return [share for share, owner in enumerate(self.owners) if owner == process_rank() and self.shares[share]]

    def sweeps(self, count: int) -> list[ShardedBatches]:
        """Part the shares into runs of neighbours, for want of memory."""
        ends = [len(self.shares) * number // count for number in range(count + 1)]
        return [
            replace(self, shares=[share if start <= number < end else [] for number, share in enumerate(self.shares)])
            for start, end in pairwise(ends)
        ]

    def batch(self, place: int) -> MicroBatch:
        """Return a micro-batch as tensors."""
        return padded(self.plan[place], self.settings.tokens, self.settings.padding_side)


def decoder_inputs(decoder: Any, batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """Return what a decoder is called with for a micro-batch."""
    takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters
    positions = {"position_ids": batch.position_ids_BT.to(device)} if takes_positions else {}
    return {
        "input_ids": batch.input_ids_BT.to(device),
        "attention_mask": batch.attention_mask_BT.to(device),
        "use_cache": False,
        **positions,
    }


def add_in_order(
    total: MomentAccumulator, work: ShardedBatches, parts: Mapping[int, MomentAccumulator]
) -> MomentAccumulator:
    """Add the sums of all shares, those of other processes too, in the order of the shares.

    Args:
        total: What earlier shares came to; it grows.
        work: What was run.
        parts: The sums of the shares that this process ran.
    """
    for share, owner in enumerate(work.owners):
        if work.shares[share]:
            total.merge(parts[share] if process_count() == 1 else _from(owner, parts.get(share)))
    return total


def _from(owner: int, part: MomentAccumulator | None) -> MomentAccumulator:
    sent = agreed(None if part is None else part.tensors(), owner)
    return part if part is not None else MomentAccumulator.of(sent or {})
