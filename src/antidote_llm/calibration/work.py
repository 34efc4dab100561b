"""What is to be run: micro-batches in shares, which of them are this process's, and what each of them goes through."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from antidote_llm.artifacts.processes import agreed, process_count, process_rank
from antidote_llm.calibration.batching import MicroBatch, Rows, padded, padded_tokens, shares
from antidote_llm.calibration.observing import Heard
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.calibration.sums import Sums


@dataclass(frozen=True)
class Work:
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
    ) -> Work:
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

    def sweeps(self, count: int) -> list[Work]:
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


def add_in_order(total: Sums, work: Work, parts: Mapping[int, Sums]) -> Sums:
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


def _from(owner: int, part: Sums | None) -> Sums:
    sent = agreed(None if part is None else part.tensors(), owner)
    return part if part is not None else Sums.of(sent or {})
