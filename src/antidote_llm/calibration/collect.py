"""Collects the statistics of a model's sites over rows, and says before what that takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
import transformers

from antidote_llm.calibration.batching import (
    SHARDS,
    OnSquares,
    Rows,
    ShardedBatches,
    batch_plan,
    counted_tokens,
    padded_tokens,
)
from antidote_llm.calibration.in_memory import sums_of_whole
from antidote_llm.calibration.input_hooks import require_finite
from antidote_llm.calibration.layer_by_layer import PROBE_LENGTH, PROBE_ROWS, sums_by_layer
from antidote_llm.calibration.moments import MomentAccumulator, Moments
from antidote_llm.calibration.resume import KeptState, read_kept, write_tensors
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.rendering import TokenizedRow, rendered_sha256
from antidote_llm.errors import UserError, setting
from antidote_llm.io.cache import cache_root
from antidote_llm.io.files import sha256_json
from antidote_llm.io.processes import agreed, largest, process_count, process_rank
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.memory_budget import MemoryBudget, resident_bytes
from antidote_llm.models.sites import Site

# A block of rows that is edited: before, as float32, its scores, the mask, and after.
_EDITING_BYTES = 160_000_000
# Two float64 numbers a column.
_SUMS_BYTES = 16


@dataclass(frozen=True)
class Estimate:
    """What a collection takes.

    Attributes:
        engine: ``memory`` or ``streaming``.
        tokens: Positions that are computed, padding included.
        ram_bytes: The process's peak resident memory.
        read_bytes: What is read from the disk after opening.
        sweeps: How often the layers are read.
    """

    engine: str
    tokens: int
    ram_bytes: int
    read_bytes: int
    sweeps: int


def estimated(collection: Collection, budget: MemoryBudget | None = None) -> Estimate:
    """Estimate what a collection takes, with the fewest sweeps that fit in the memory budget.

    Raises:
        UserError: It does not fit.
    """
    opened, budget = collection.opened, budget or MemoryBudget()
    settings = collection.settings
    plan = batch_plan(collection.rows, settings.batch_tokens, settings.batch_rows)
    tokens = sum(map(padded_tokens, plan))
    most = budget.most_ram_bytes
    fixed = resident_bytes() + _activation_bytes(opened, max(plan, key=padded_tokens)) + _EDITING_BYTES
    if opened.stream is None:
        fixed += _sums_bytes(collection)
        if budget.ram_bytes is not None and fixed > most:
            raise _too_much(fixed, most)
        return Estimate("memory", tokens, fixed, 0, 1)
    layers = opened.stream.layer_bytes
    # A layer that computes, the next that is read, and what of its file has not been converted.
    held = (
        fixed
        + _probe_bytes(opened, len(layers))
        + 2 * max(opened.stream.held_bytes)
        + max(layers)
        + _sums_bytes(collection)
    )
    waiting = sum(_waiting_bytes(opened, rows) for rows in plan)
    for sweeps in range(1, SHARDS + 1):
        needed = held + -(-waiting // sweeps)
        if needed <= most:
            break
    else:
        raise _too_much(needed, most)
    # The same in all processes: they wait for each other at every layer.
    sweeps = largest(sweeps)
    return Estimate("streaming", tokens, needed, sweeps * sum(layers), sweeps)


def _too_much(needed: int, most: int) -> UserError:
    return UserError(
        f"the statistics take {needed / 1e9:,.2f} GB of memory and {most / 1e9:,.2f} GB may be used: raise "
        f"{setting('max_ram')}, or lower {setting('harmful_rows')}"
    )


def _sums_bytes(collection: Collection) -> int:
    """Return what the sums of all sites take: those kept, those returned, and those of the shards being summed."""
    by_layer: Counter[int | None] = Counter()
    for site in collection.sites:
        by_layer[site.layer] += site.shape[1]
    everything = sum(by_layer.values())
    if collection.opened.stream is not None:
        summed = SHARDS * max(by_layer.values(), default=0)
    else:
        summed = everything if process_count() == 1 else SHARDS * everything
    return _SUMS_BYTES * (2 * everything + summed)


def _activation_bytes(opened: LoadedModel, rows: Rows) -> int:
    """Estimate what the largest micro-batch takes inside a layer: its inputs in their widths, as float32."""
    config = opened.causal_model.config.get_text_config()
    hidden = int(config.hidden_size)
    inner = max(int(getattr(config, "intermediate_size", None) or 4 * hidden), hidden)
    heads, length = _heads(config), max(len(row.input_ids) for row in rows)
    return 4 * (padded_tokens(rows) * (6 * hidden + 3 * inner) + len(rows) * heads * length * length)


def _waiting_bytes(opened: LoadedModel, rows: Rows) -> int:
    """Return what a micro-batch takes between two layers: its hidden states, and the other arguments of layers."""
    config: Any = opened.causal_model.config.get_text_config()
    length = max(len(row.input_ids) for row in rows)
    head = getattr(config, "head_dim", None) or math.ceil(config.hidden_size / _heads(config))
    item_bytes = opened.dtype.itemsize
    mask_and_rotary = len(rows) * length * (length + 2 * int(head)) * item_bytes
    return padded_tokens(rows) * int(config.hidden_size) * item_bytes + mask_and_rotary


def _probe_bytes(opened: LoadedModel, layers: int) -> int:
    hidden = int(opened.causal_model.config.get_text_config().hidden_size)
    return layers * PROBE_ROWS * PROBE_LENGTH * hidden * opened.dtype.itemsize


def _heads(config: Any) -> int:
    """Return how many attention heads there are; 1 if there is no attention."""
    return int(getattr(config, "num_attention_heads", None) or 1)


# Raised whenever the same inputs give other sums.
MOMENTS_VERSION = 2


@dataclass(frozen=True)
class Collection:
    """A collection of statistics that has not run.

    Attributes:
        opened: The model.
        sites: What to observe.
        rows: Rows with a counted token.
        settings: Token policy and batching.
        tokens: How many tokens are counted.
        sha256: The hash of everything that the statistics depend on.
    """

    opened: LoadedModel
    sites: tuple[Site, ...]
    rows: tuple[TokenizedRow, ...]
    settings: CalibrationSettings
    tokens: int
    sha256: str

    @classmethod
    def of(
        cls,
        opened: LoadedModel,
        rows: Sequence[TokenizedRow],
        settings: CalibrationSettings | None = None,
        sites: Sequence[Site] | None = None,
    ) -> Collection:
        """Define a collection.

        Args:
            opened: The model.
            rows: Token ids with their response starts.
            settings: Token policy and batching.
            sites: What to observe; by default the adapter's matrices.

        Raises:
            UserError: No row has a counted token.
        """
        settings = (settings or CalibrationSettings()).on(opened.device)
        sites = opened.sites if sites is None else sites
        counts = [len(counted_tokens(row, settings.tokens)) for row in rows]
        if not any(counts):
            raise UserError(
                f"no calibration row has a {settings.tokens} token: map a response column or use "
                f"{setting('tokens')} all"
            )
        counted = tuple(row for row, count in zip(rows, counts, strict=True) if count)
        return cls(opened, tuple(sites), counted, settings, sum(counts), _key(opened, sites, rows, settings))

    def of_rows(self, places: Sequence[int]) -> Collection:
        """Return the collection from some of the rows."""
        return Collection.of(self.opened, [self.rows[place] for place in places], self.settings, self.sites)

    def by_part(
        self,
        *,
        progress: Callable[[int], None] | None = None,
        cache: bool = True,
        work: Path | None = None,
        sweeps: int = 1,
        on_squares: OnSquares | None = None,
    ) -> Iterator[tuple[tuple[Site, ...], Moments]]:
        """Yield sites with their moments, as soon as these are complete: all at once, or layer by layer.

        Args:
            progress: Called with a number of rows, which add up to all rows.
            cache: Whether to read the moments from the cache if they are there, and to write them there.
            work: A folder for the checkpoints that an interrupted run resumes from.
            sweeps: How many times layers on the disk are read, each time for a part of the rows.
            on_squares: Called with the sums of squares of every micro-batch; rows have their numbers in ``rows``.

        Raises:
            UserError: A site did not see every token, or its input is not finite.
        """
        path = cache_root() / "moments" / f"{self.sha256}.safetensors"
        if agreed((found := self._cached(path) if cache else None) is not None):
            if progress:
                progress(len(self.rows))
            yield self.sites, self._moments(self.sites, found or self._required(path))
            return
        total, keeps = MomentAccumulator(), cache and process_rank() == 0
        if keeps:
            _require_place(path.parent)
        for sites, sums in self._parts(progress, work, sweeps, on_squares):
            require_finite(sums)
            if keeps:
                total.merge(sums)
            yield sites, self._moments(sites, sums)
        if keeps:
            self._keep(path, total)

    def whole(self, **options: Any) -> Moments:
        """Return the moments of all sites: as :meth:`by_part`."""
        parts = [moments for _, moments in self.by_part(**options)]
        sites = {name: found for part in parts for name, found in part.sites.items()}
        return Moments(sites, len(self.rows), self.tokens, self.sha256)

    def _parts(
        self,
        progress: Callable[[int], None] | None,
        folder: Path | None,
        sweeps: int,
        on_squares: OnSquares | None,
    ) -> Iterator[tuple[tuple[Site, ...], MomentAccumulator]]:
        work = ShardedBatches.of(self.rows, self.settings, on_squares)
        kept = None
        if folder is not None:
            name = f"statistics-{process_rank()}-of-{process_count()}.safetensors"
            engine = "memory" if self.opened.stream is None else f"streaming-{PROBE_LENGTH}"
            kept = KeptState(folder / name, f"{self.sha256}/{engine}/{sweeps}")
        if self.opened.stream is None:
            yield self.sites, sums_of_whole(self.opened, self.sites, work, progress, kept)
        else:
            yield from sums_by_layer(
                self.opened, self.opened.stream, self.sites, work, sweeps=sweeps, progress=progress, kept=kept
            )

    def _moments(self, sites: Sequence[Site], sums: MomentAccumulator) -> Moments:
        names = [site.name for site in sites]
        return Moments(sums.moments(names), len(self.rows), self.tokens, self.sha256)

    def _cached(self, path: Path) -> MomentAccumulator | None:
        """Return cached sums; None if there are none or the file is damaged: they are then collected again."""
        found = read_kept(path, self.sha256)
        if found is None:
            return None
        sums = MomentAccumulator.of(found)
        return sums if all(site.name in sums.tokens for site in self.sites) else None

    def _required(self, path: Path) -> MomentAccumulator:
        if (found := self._cached(path)) is None:
            raise UserError(
                f"{path}: only some of the processes see it: give them one cache, or pass {setting('no_cache')}"
            )
        return found

    def _keep(self, path: Path, sums: MomentAccumulator) -> None:
        try:
            write_tensors(path, sums.tensors(), {"key": self.sha256})
        except OSError as error:
            raise _not_kept(path.parent, error) from error


def _require_place(folder: Path) -> None:
    """Refuse a cache that cannot be written before the statistics are collected, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_kept(folder, error) from error


def _not_kept(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: statistics cannot be kept there: {error.strerror}: "
        f"set ANTIDOTE_CACHE to another folder, or pass {setting('no_cache')}"
    )


def collect(
    opened: LoadedModel,
    rows: Sequence[TokenizedRow],
    settings: CalibrationSettings | None = None,
    *,
    sites: Sequence[Site] | None = None,
    progress: Callable[[int], None] | None = None,
    cache: bool = True,
) -> Moments:
    """Collect the moments of every site's input over rows.

    Args:
        opened: The model.
        rows: Token ids with their response starts.
        settings: Token policy and batching.
        sites: What to observe; by default the adapter's matrices.
        progress: Called with the number of rows of each finished micro-batch.
        cache: Whether to read the moments from the cache if they are there, and to write them there.

    Raises:
        UserError: No row has a counted token, or a site did not see every token.
    """
    return Collection.of(opened, rows, settings, sites).whole(progress=progress, cache=cache)


def _key(
    opened: LoadedModel, sites: Sequence[Site], rows: Sequence[TokenizedRow], settings: CalibrationSettings
) -> str:
    return sha256_json(
        {
            "version": MOMENTS_VERSION,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **opened.identity,
            "rows": rendered_sha256(rows),
            "settings": settings.model_dump(),
            "sites": [site.name for site in sites],
        }
    )
