"""The engine for a model that is in memory whole: one forward pass for each micro-batch, up to the last site."""

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

# Stands among the numbers of shares for those that have been added up.
_ADDED_UP = -1


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
        kept: Where sums are kept as they grow, and found again.
    """
    # The decoder alone, unless something after it is scored: statistics need no logits.
    decoder = opened.causal_model.base_model
    inside = set(decoder.modules())
    if any(module not in inside for site in sites for module in site.observed):
        decoder = opened.causal_model
    observer = Observer(sites)
    parts, done = _found(kept)
    added_up, is_alone = parts.setdefault(_ADDED_UP, MomentAccumulator()), process_count() == 1
    with torch.inference_mode(), experts_seen(decoder, sites), observer.attached():
        for share in work.own_shares:
            part = parts.setdefault(share, MomentAccumulator())
            for number, place in enumerate(work.shares[share]):
                if number >= done.get(share, 0):
                    batch = work.batch(place)
                    inputs = decoder_inputs(decoder, batch, opened.device)
                    with observer.counting(batch.counted_BT.to(opened.device), part, work.listener(place)):
                        decoder(**inputs)
                    done[share] = number + 1
                    if kept is not None and kept.due:
                        kept.keep(_kept(parts, done))
                if progress:
                    progress(len(work.plan[place]))
            if is_alone:
                # At once, so that the sums of one share are held and not of all: experts have many.
                added_up.merge(parts.pop(share))
    return added_up if is_alone else add_in_order(added_up, work, parts)


def _kept(parts: dict[int, MomentAccumulator], done: dict[int, int]) -> dict[str, Tensor]:
    tensors = {f"{share}/{name}": values for share, part in parts.items() for name, values in part.tensors().items()}
    return tensors | {f"{share}/done": torch.tensor(count) for share, count in done.items()}


def _found(kept: KeptState | None) -> tuple[dict[int, MomentAccumulator], dict[int, int]]:
    by_share: dict[int, dict[str, Tensor]] = {}
    for name, values in ((kept.read() if kept else None) or {}).items():
        share, _, rest = name.partition("/")
        by_share.setdefault(int(share), {})[rest] = values
    done = {share: int(tensors.pop("done")) for share, tensors in by_share.items() if "done" in tensors}
    return {share: MomentAccumulator.of(tensors) for share, tensors in by_share.items()}, done
