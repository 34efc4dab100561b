"""Several processes train as one: every global batch is cut into equal shares, in the order that one process has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from antidote_llm.artifacts.processes import process_count, require_launched
from antidote_llm.errors import UserError
from antidote_llm.training.batches import BLANK


class WholeBatches:
    """Fills an epoch's last batch up with blank rows, so that it can be cut like the others.

    Args:
        batches: The batch sampler of one process.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield batch + [BLANK] * (self._batches.batch_size - len(batch))


def require_shareable(batch_size: int) -> None:
    """Refuse a batch that cannot be cut into equal shares, and processes that cannot find each other.

    Raises:
        UserError: Names a size that can, or what is missing.
    """
    require_launched()
    processes = process_count()
    if batch_size % processes:
        raise UserError(
            f"--batch-size {batch_size} is not shared evenly by {processes} processes: "
            f"pass --batch-size {processes * -(-batch_size // processes)}"
        )


def fill_up(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Let a loader that cuts its batches into shares fill up the last one."""
    shares: Any = loader.batch_sampler
    shares.batch_sampler = WholeBatches(shares.batch_sampler)
    return loader
