"""What collecting statistics takes: memory, reading, and how often the layers are gone through. Before any of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from antidote_llm.artifacts.processes import largest, process_count
from antidote_llm.calibration.batching import SHARES, Rows, batch_plan, padded_tokens
from antidote_llm.calibration.collecting import Collection
from antidote_llm.errors import UserError
from antidote_llm.models.opening import OpenModel
from antidote_llm.models.room import Room, resident_bytes

# A block of rows that is edited: as it was, as float32, its scores, what is chosen, and as it becomes.
_EDITING_BYTES = 160_000_000
# Of one column: two numbers of float64.
_SUMS_BYTES = 16


@dataclass(frozen=True)
class Estimate:
    """What a collection takes.

    Attributes:
        engine: ``memory`` or ``streaming``.
        tokens: Positions that are computed, pads included.
        ram_bytes: The process's resident memory at its peak.
        read_bytes: What is read from the disk once more than opening did.
        sweeps: How often the layers are gone through.
    """

    engine: str
    tokens: int
    ram_bytes: int
    read_bytes: int
    sweeps: int


def estimated(collection: Collection, room: Room | None = None) -> Estimate:
    """Say what a collection takes, with as few sweeps as fit into the room.

    Raises:
        UserError: It does not fit; says what would.
    """
    opened, room = collection.opened, room or Room()
    settings = collection.settings
    plan = batch_plan(collection.rows, settings.batch_tokens, settings.batch_rows)
    tokens = sum(map(padded_tokens, plan))
    most = room.most_ram_bytes
    beside = resident_bytes() + _activation_bytes(opened, max(plan, key=padded_tokens)) + _EDITING_BYTES
    if opened.stream is None:
        beside += _sums_bytes(collection)
        if room.ram_bytes is not None and beside > most:
            raise _too_much(beside, most)
        return Estimate("memory", tokens, beside, 0, 1)
    layers = opened.stream.layer_bytes
    # A layer that computes, the next that is read, and what of its file has not been converted.
    held = beside + 2 * max(opened.stream.held_bytes) + max(layers) + _sums_bytes(collection)
    waiting = sum(_waiting_bytes(opened, rows) for rows in plan)
    for sweeps in range(1, SHARES + 1):
        needed = held + -(-waiting // sweeps)
        if needed <= most:
            break
    else:
        raise _too_much(needed, most)
    # As often in all processes: they wait for each other at every layer.
    sweeps = largest(sweeps)
    return Estimate("streaming", tokens, needed, sweeps * sum(layers), sweeps)


def _too_much(needed: int, most: int) -> UserError:
    return UserError(
        f"the statistics take {needed / 1e9:,.2f} GB of memory and {most / 1e9:,.2f} GB may be used: raise --max-ram, "
        "or lower --harmful-rows"
    )


def _sums_bytes(collection: Collection) -> int:
    """Return what the sums of all sites take: those kept, those handed on, and those of shares being summed."""
    by_layer: Counter[int | None] = Counter()
    for site in collection.sites:
        by_layer[site.layer] += site.shape[1]
    everything = sum(by_layer.values())
    if collection.opened.stream is not None:
        summed = SHARES * max(by_layer.values(), default=0)
    else:
        summed = everything if process_count() == 1 else SHARES * everything
    return _SUMS_BYTES * (2 * everything + summed)


def _activation_bytes(opened: OpenModel, rows: Rows) -> int:
    """Return what the largest micro-batch takes inside a layer, roughly: its inputs in their widths, as float32."""
    config = opened.causal_model.config.get_text_config()
    hidden = int(config.hidden_size)
    inner = max(int(getattr(config, "intermediate_size", None) or 4 * hidden), hidden)
    heads, length = _heads(config), max(len(row.input_ids) for row in rows)
    return 4 * (padded_tokens(rows) * (6 * hidden + 3 * inner) + len(rows) * heads * length * length)


def _waiting_bytes(opened: OpenModel, rows: Rows) -> int:
    """Return what a micro-batch holds between two layers: its hidden states, and what layers are called with."""
    config: Any = opened.causal_model.config.get_text_config()
    length = max(len(row.input_ids) for row in rows)
    head = getattr(config, "head_dim", None) or math.ceil(config.hidden_size / _heads(config))
    item_bytes = opened.dtype.itemsize
    mask_and_rotary = len(rows) * length * (length + 2 * int(head)) * item_bytes
    return padded_tokens(rows) * int(config.hidden_size) * item_bytes + mask_and_rotary


def _heads(config: Any) -> int:
    """Return how many heads the attention has; 1 where there is none."""
    return int(getattr(config, "num_attention_heads", None) or 1)
