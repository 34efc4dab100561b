"""The processes that ``torchrun`` or ``accelerate launch`` started: how many, which one this is, what they agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from antidote_llm.errors import UserError

Value = TypeVar("Value")


def process_count() -> int:
    """Return how many processes ``torchrun`` or ``accelerate launch`` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return which of them this one is."""
    # With one process, a rank in the environment is left over from something else.
    return 0 if process_count() == 1 else int(os.environ.get("RANK", "0"))


def neighbour_count() -> int:
    """Return how many of them share this machine, this one included."""
    return 1 if process_count() == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process writes the results and talks to the user."""
    return process_rank() == 0


def require_launched() -> None:
    """Refuse processes that cannot find each other.

    Raises:
        UserError: Says what is missing.
    """
    processes = process_count()
    if processes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {processes}, but MASTER_ADDR is not set: "
            "start with torchrun or accelerate launch, or unset WORLD_SIZE"
        )


def connect() -> None:
    """Join the other processes, where there are any and they have not been joined.

    Raises:
        UserError: They cannot find each other.
    """
    import torch.distributed as dist

    require_launched()
    if process_count() > 1 and not dist.is_initialized():
        # What is sent is on the CPU, whatever device computes.
        dist.init_process_group("gloo")


def agreed(value: Value, source: int = 0) -> Value:
    """Return one process's value, by default the first's, in every process.

    Raises:
        UserError: A process has ended, or they cannot find each other.
    """
    if process_count() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    with _all_there():
        dist.broadcast_object_list(box, src=source)
    return box[0]


def all_equal(value: object) -> bool:
    """Return whether every process has the same value.

    Raises:
        UserError: As :func:`agreed`.
    """
    return all(other == value for other in _of_all(value))


def largest(value: int) -> int:
    """Return the largest value of all processes, for what has to fit all of them.

    Raises:
        UserError: As :func:`agreed`.
    """
    return max(_of_all(value))


def _of_all(value: Value) -> list[Value]:
    if process_count() == 1:
        return [value]
    import torch.distributed as dist

    values = [value] * process_count()
    with _all_there():
        dist.all_gather_object(values, value)
    return values


@contextmanager
def _all_there() -> Iterator[None]:
    try:
        connect()
        yield
    except RuntimeError as error:
        raise UserError("another process has ended, and this one cannot go on alone: see what that one says") from error
