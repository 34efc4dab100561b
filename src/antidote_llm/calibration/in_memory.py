"""The engine for a model in memory: one forward pass for each micro-batch, up to the last site."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from antidote_llm.calibration.batching import ShardedBatches, add_in_order, decoder_inputs
from antidote_llm.calibration.input_hooks import Observer, experts_seen
from antidote_llm.calibration.moments import MomentAccumulator
from antidote_llm.calibration.resume import KeptState
from antidote_llm.io.processes import process_count
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.sites import Site

# The key, among the numbers of shards, of the sum of those that are complete.
_COMPLETE = -1


def sums_of_whole(
    opened: LoadedModel,
    sites: Sequence[Site],
    work: ShardedBatches,
    progress: Callable[[int], None] | None = None,
    kept: KeptState | None = None,
) -> MomentAccumulator:
    """Run all micro-batches and return the sums of all sites.

    Args:
        opened: The model.
        sites: What to observe.
        work: The micro-batches.
        progress: Called with the number of rows of each finished micro-batch.
        kept: The checkpoint of the sums.
    """
    # The decoder alone, unless a site comes after it: statistics need no logits.
    decoder = opened.causal_model.base_model
    inside = set(decoder.modules())
    if any(module not in inside for site in sites for module in site.observed):
        decoder = opened.causal_model
    observer = Observer(sites)
    parts, done = _found(kept)
    total, is_alone = parts.setdefault(_COMPLETE, MomentAccumulator()), process_count() == 1
    with torch.inference_mode(), experts_seen(decoder, sites), observer.attached():
        for shard in work.own_shards:
            part = parts.setdefault(shard, MomentAccumulator())
            for number, place in enumerate(work.shards[shard]):
                if number >= done.get(shard, 0):
                    batch = work.batch(place)
                    inputs = decoder_inputs(decoder, batch, opened.device)
                    with observer.counting(batch.counted_BT.to(opened.device), part, work.on_site_squares(place)):
                        decoder(**inputs)
                    done[shard] = number + 1
                    if kept is not None and kept.due:
                        kept.keep(_kept(parts, done))
                if progress:
                    progress(len(work.plan[place]))
            if is_alone:
                # At once, so that the sums of one shard are held and not of all: experts have many.
                total.merge(parts.pop(shard))
    return total if is_alone else add_in_order(total, work, parts)


def _kept(parts: dict[int, MomentAccumulator], done: dict[int, int]) -> dict[str, Tensor]:
    tensors = {f"{shard}/{name}": values for shard, part in parts.items() for name, values in part.tensors().items()}
    return tensors | {f"{shard}/done": torch.tensor(count) for shard, count in done.items()}


def _found(kept: KeptState | None) -> tuple[dict[int, MomentAccumulator], dict[int, int]]:
    by_shard: dict[int, dict[str, Tensor]] = {}
    for name, values in ((kept.read() if kept else None) or {}).items():
        shard, _, rest = name.partition("/")
        by_shard.setdefault(int(shard), {})[rest] = values
    done = {shard: int(tensors.pop("done")) for shard, tensors in by_shard.items() if "done" in tensors}
    return {shard: MomentAccumulator.of(tensors) for shard, tensors in by_shard.items()}, done
