"""Continuous batching for greedy generation: when an answer ends, the next prompt takes its place in the batch.

This is a decoding loop over the model's forward pass, for models whose cache holds the keys and values of every
position and nothing else. The prefix that all prompts share, such as a system prompt, is read once (prefix caching).

Axes: B rows, T positions of the cache (padding included), N tokens of a forward pass, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from antidote_llm.evaluation.prompts import Limits, Row, halved_batch_size, longest_first, padded
from antidote_llm.models.transformers_private import supports_dynamic_cache

# Finished rows are removed, and new ones added, once they are a quarter of the batch: each costs a copy of the cache.
_TURNOVER = 4
# A shorter shared prefix is not worth a forward pass of its own.
_SHORTEST_PREFIX = 8


def supports_continuous_batching(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether rows can be added to and removed from a batch: a plain cache, and positions as an argument."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return False
    if type(causal).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation:
        return False
    if not {"position_ids", "logits_to_keep"} <= inspect.signature(causal.forward).parameters.keys():
        return False
    return supports_dynamic_cache(causal) and _is_plain(_new_cache(model))


def continuous_batches(model: PreTrainedModel | PeftModel, rows: Sequence[Row], limits: Limits) -> Iterator[list[Row]]:
    """Answer rows in place, and yield rows as their answers end.

    Raises:
        UserError: A single row does not fit into the device's memory.
    """
    pending, batch_size = longest_first(rows), limits.batch_size
    batch = _Batch(model, _shared_prefix(pending), limits)
    while pending or batch.rows:
        added = pending[: batch.places_for(pending, batch_size)]
        try:
            ended = batch.add(added) if added else batch.step()
        except torch.OutOfMemoryError as error:
            batch_size = halved_batch_size([*batch.rows, *added], error)
            pending = longest_first([*batch.unfinished(), *pending])
            batch.clear()
            continue
        pending = pending[len(added) :]
        if ended:
            batch.remove_finished()
            yield ended


class _Batch:
    """The rows of a running batch, with their cache."""

    def __init__(self, model: PreTrainedModel | PeftModel, prefix: Sequence[int], limits: Limits) -> None:
        self._model, self._prefix, self._limits = model, list(prefix), limits
        self._prefix_cache: Any = None
        self.clear()

    def clear(self) -> None:
        """Remove all rows."""
        self.rows: list[Row] = []
        self._continues: list[bool] = []
        self._cache: Any = _new_cache(self._model)
        device = self._model.device
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long, device=device)
        self._last_B = torch.zeros(0, dtype=torch.long, device=device)

    def unfinished(self) -> list[Row]:
        """Return the rows whose answers have not ended."""
        return [row for row, continues in zip(self.rows, self._continues, strict=True) if continues]

    def places_for(self, pending: Sequence[Row], batch_size: int) -> int:
        """Return how many of the pending rows, longest first, to add now."""
        if not pending:
            return 0
        most_new = self._limits.max_new_tokens
        widest = len(pending[0].prompt) + most_new
        if unfinished := self.unfinished():
            widest = max(widest, self._mask_BT.shape[1] + most_new - min(len(row.answer) for row in unfinished))
        most = max(1, min(batch_size, self._limits.batch_tokens // widest))
        free = most - len(self.rows)
        return free if free > 0 and (not self.rows or free * _TURNOVER >= most) else 0

    def add(self, new: Sequence[Row]) -> list[Row]:
        """Read new rows, add them to the batch, and return those whose answers end with the first token."""
        shared = len(self._prefix)
        ids_BN, own_mask_BN = padded([row.ids[shared:] for row in new], self._limits.pad_id, self._model.device)
        mask_BT = pad(own_mask_BN, (shared, 0), value=1)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        cache = self._cache_after_prefix(len(new))
        last_B = self._next(ids_BN, mask_BT, positions_BT[:, shared:], cache)
        before = len(self.rows)
        if before:
            mask_BT = self._merged_mask(cache, mask_BT)
            last_B = torch.cat([self._last_B, last_B])
        self._cache, self._mask_BT, self._last_B = cache, mask_BT, last_B
        self.rows += new
        self._continues += [True] * len(new)
        return self._append(range(before, len(self.rows)))

    def step(self) -> list[Row]:
        """Generate the next token of every row, and return the rows whose answers end with it."""
        unfinished_B = torch.tensor(self._continues, dtype=torch.long, device=self._mask_BT.device)
        # Finished rows keep their position until they are removed: the model may have no further one.
        mask_BT = torch.cat([self._mask_BT, unfinished_B[:, None]], dim=1)
        positions_BN = mask_BT.sum(1, keepdim=True) - 1
        self._last_B = self._next(self._last_B[:, None], mask_BT, positions_BN, self._cache)
        self._mask_BT = mask_BT
        return self._append(range(len(self.rows)))

    def remove_finished(self) -> None:
        """Remove the finished rows, where there are enough of them to be worth a copy of the cache."""
        kept = [place for place, continues in enumerate(self._continues) if continues]
        if (len(self.rows) - len(kept)) * _TURNOVER < len(self.rows):
            return
        if not kept:
            self.clear()
            return
        places_B = torch.tensor(kept, device=self._mask_BT.device)
        mask_BT = self._mask_BT[places_B]
        # The first position that is not padding in every remaining row.
        first = int(mask_BT.any(0).int().argmax())
        for layer in _layers(self._cache):
            places = places_B.to(layer.keys.device)
            layer.keys, layer.values = (each[places][..., first:, :] for each in (layer.keys, layer.values))
        self._mask_BT, self._last_B = mask_BT[:, first:], self._last_B[places_B]
        self.rows, self._continues = [self.rows[place] for place in kept], [True] * len(kept)

    def _append(self, places: range) -> list[Row]:
        """Append the last tokens to their rows, and return the rows whose answers end with it."""
        ended = []
        for place, token in zip(places, self._last_B[places.start :].tolist(), strict=True):
            if self._continues[place] and not self._limits.append(self.rows[place], token):
                self._continues[place] = False
                ended.append(self.rows[place])
        return ended

    def _next(
        self, ids_BN: torch.Tensor, mask_BT: torch.Tensor, positions_BN: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Return the likeliest next token of every row, and extend the cache."""
        output = self._model(
            input_ids=ids_BN,
            attention_mask=mask_BT,
            position_ids=positions_BN,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: torch.Tensor = output.logits[:, -1]
        return logits_BV.argmax(-1).to(mask_BT.device)

    def _merged_mask(self, cache: Any, mask_BT: torch.Tensor) -> torch.Tensor:
        """Put the running rows in front of the new ones in the new cache, and return the mask of both."""
        width = max(self._mask_BT.shape[1], mask_BT.shape[1])
        for old, new in zip(_layers(self._cache), _layers(cache), strict=True):
            new.keys = torch.cat([_widened(old.keys, width), _widened(new.keys, width)])
            new.values = torch.cat([_widened(old.values, width), _widened(new.values, width)])
        return torch.cat([_widened(each[..., None], width)[..., 0] for each in (self._mask_BT, mask_BT)])

    def _cache_after_prefix(self, rows: int) -> Any:
        """Return a cache that holds the shared prefix for every row."""
        cache = _new_cache(self._model)
        if not self._prefix:
            return cache
        if self._prefix_cache is None:
            read, ids_BN = _new_cache(self._model), torch.tensor([self._prefix], device=self._model.device)
            positions_BN = torch.arange(len(self._prefix), device=self._model.device)[None]
            self._next(ids_BN, torch.ones_like(ids_BN), positions_BN, read)
            self._prefix_cache = read
        for index, layer in enumerate(self._prefix_cache.layers):
            if layer.is_initialized:
                keys, values = (each.expand(rows, *each.shape[1:]) for each in (layer.keys, layer.values))
                cache.update(keys, values, index)
        return cache


def _shared_prefix(rows: Sequence[Row]) -> tuple[int, ...]:
    """Return the prefix that all prompts share, at least one token shorter than each; empty where it is too short."""
    if len(rows) < 2:
        return ()
    least, greatest = min(row.prompt for row in rows), max(row.prompt for row in rows)
    most = min(len(row.prompt) for row in rows) - 1
    shared = next((at for at in range(most) if least[at] != greatest[at]), most)
    return least[:shared] if shared >= _SHORTEST_PREFIX else ()


def _new_cache(model: PreTrainedModel | PeftModel) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _is_plain(cache: Any) -> bool:
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _layers(cache: Any) -> list[Any]:
    """Return the layers that hold keys and values: some models share them between layers."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _widened(states: torch.Tensor, width: int) -> torch.Tensor:
    """Return keys or values, left-padded in the last dimension but one."""
    return pad(states, (0, 0, width - states.shape[-2], 0))
