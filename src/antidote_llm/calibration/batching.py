"""Micro-batches: sorted by length, under a budget of padded tokens, in shards for processes; deterministic.

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

from antidote_llm.calibration.input_hooks import OnSiteSquares
from antidote_llm.calibration.moments import MomentAccumulator
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.choices import TokenPolicy
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.io.processes import agreed, process_count, process_rank

Rows: TypeAlias = tuple[TokenizedRow, ...]
# Called with the numbers of a micro-batch's rows, the names of sites that share an input, and its sums of squares by
# row, shape [B, I].
OnSquares: TypeAlias = Callable[[Sequence[int], Sequence[str], Tensor], None]
# At most as many processes can share the work.
SHARDS = 16


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


def batch_numbers(
    rows: Sequence[TokenizedRow], batch_tokens: int, batch_rows: int | None = None
) -> list[tuple[int, ...]]:
    """Group rows of similar length, at most ``batch_tokens`` padded tokens and ``batch_rows`` rows; return numbers."""
    plan: list[tuple[int, ...]] = []
    batch: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: len(rows[number].input_ids)):
        padded_size = (len(batch) + 1) * len(rows[number].input_ids)
        if batch and (padded_size > batch_tokens or len(batch) == batch_rows):
            plan.append(tuple(batch))
            batch = []
        batch.append(number)
    return [*plan, tuple(batch)] if batch else plan


def batch_plan(rows: Sequence[TokenizedRow], batch_tokens: int, batch_rows: int | None = None) -> list[Rows]:
    """Return the micro-batches of :func:`batch_numbers`, rows instead of numbers."""
    return [tuple(rows[number] for number in batch) for batch in batch_numbers(rows, batch_tokens, batch_rows)]


def padded_tokens(batch: Rows) -> int:
    """Return how many positions a batch has, padding included."""
    return len(batch) * max(len(row.input_ids) for row in batch)


def shards(plan: Sequence[Rows], count: int = SHARDS) -> list[list[int]]:
    """Divide a plan into shards of about equal size: the places of each shard's batches.

    Each shard is summed on its own, and then all in order: the bits of the sums depend neither on the number of
    processes nor on where a run was interrupted.
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
    """Micro-batches, divided into shards that are summed on their own.

    Attributes:
        plan: The rows of every micro-batch.
        numbers: The numbers of these rows.
        shards: The places of each shard's micro-batches.
        settings: How they are padded and counted.
        on_squares: Called with every micro-batch's sums.
    """

    plan: Sequence[Rows]
    numbers: Sequence[tuple[int, ...]]
    shards: Sequence[Sequence[int]]
    settings: CalibrationSettings
    on_squares: OnSquares | None = None

    @classmethod
    def of(
        cls, rows: Sequence[TokenizedRow], settings: CalibrationSettings, on_squares: OnSquares | None = None
    ) -> ShardedBatches:
        """Plan the micro-batches of rows."""
        numbers = batch_numbers(rows, settings.batch_tokens, settings.batch_rows)
        plan = [tuple(rows[number] for number in batch) for batch in numbers]
        return cls(plan, numbers, shards(plan), settings, on_squares)

    def on_site_squares(self, place: int) -> OnSiteSquares | None:
        """Return what is called with the sums of one micro-batch."""
        return None if self.on_squares is None else partial(self.on_squares, self.numbers[place])

    @property
    def owners(self) -> list[int]:
        """Which process runs each shard: the largest goes to whichever has least."""
        sizes = [sum(padded_tokens(self.plan[place]) for place in shard) for shard in self.shards]
        filled, found = [0] * process_count(), [0] * len(sizes)
        for shard in sorted(range(len(sizes)), key=lambda shard: -sizes[shard]):
            found[shard] = filled.index(min(filled))
            filled[found[shard]] += sizes[shard]
        return found

    @property
    def own_shards(self) -> list[int]:
        """The shards that this process runs, in order; none without rows."""
        return [shard for shard, owner in enumerate(self.owners) if owner == process_rank() and self.shards[shard]]

    def sweeps(self, count: int) -> list[ShardedBatches]:
        """Split the shards into groups of neighbours, each of which fits in memory."""
        ends = [len(self.shards) * number // count for number in range(count + 1)]
        return [
            replace(self, shards=[shard if start <= number < end else [] for number, shard in enumerate(self.shards)])
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
    """Add the sums of all shards, those of other processes too, in the order of the shards.

    Args:
        total: The sums of earlier shards, which grow.
        work: The micro-batches.
        parts: The sums of the shards that this process ran.
    """
    for shard, owner in enumerate(work.owners):
        if work.shards[shard]:
            total.merge(parts[shard] if process_count() == 1 else _from(owner, parts.get(shard)))
    return total


def _from(owner: int, part: MomentAccumulator | None) -> MomentAccumulator:
    sent = agreed(None if part is None else part.tensors(), owner)
    return part if part is not None else MomentAccumulator.of(sent or {})
