"""Greedy answers in slots: a row whose answer ends gives its place in the batch to the next prompt.

A decoding loop of our own over the model's forward pass, for models that keep the keys and values of every position
and nothing else. What all prompts begin with, a system prompt or a template's preamble, is read once.

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

from antidote_llm.evaluation.prompts import Limits, Row, half_of, longest_first, padded

# Ended rows leave, and new ones enter, once they are this share of the batch: one in so many.
_SHARE = 4
# A shorter beginning that all prompts share is not worth a forward pass of its own.
_LEAST_SHARED = 8


def keeps_every_position(model: PreTrainedModel | PeftModel) -> bool:
    """Say whether a model's rows can be put together and taken apart: its cache is plain, and it takes positions."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return False
    if type(causal).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation:
        return False
    if not {"position_ids", "logits_to_keep"} <= inspect.signature(causal.forward).parameters.keys():
        return False
    return causal._supports_default_dynamic_cache() and _is_plain(_new_cache(model))


def in_slots(model: PreTrainedModel | PeftModel, rows: Sequence[Row], limits: Limits) -> Iterator[list[Row]]:
    """Answer rows in place, and yield those whose answers have ended as they do.

    Raises:
        UserError: A row alone does not fit into the device's memory.
    """
    pending, batch_size = longest_first(rows), limits.batch_size
    slots = _Slots(model, _shared_beginning(pending), limits)
    while pending or slots.rows:
        entering = pending[: slots.free_for(pending, batch_size)]
        try:
            ended = slots.enter(entering) if entering else slots.step()
        except torch.OutOfMemoryError as error:
            batch_size = half_of([*slots.rows, *entering], error)
            pending = longest_first([*slots.going(), *pending])
            slots.clear()
            continue
        pending = pending[len(entering) :]
        if ended:
            slots.leave()
            yield ended


class _Slots:
    """The rows of a batch with all that the model keeps of them."""

    def __init__(self, model: PreTrainedModel | PeftModel, beginning: Sequence[int], limits: Limits) -> None:
        self._model, self._beginning, self._limits = model, list(beginning), limits
        self._read_beginning: Any = None
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.rows: list[Row] = []
        self._goes_on: list[bool] = []
        self._cache: Any = _new_cache(self._model)
        device = self._model.device
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long, device=device)
        self._last_B = torch.zeros(0, dtype=torch.long, device=device)

    def going(self) -> list[Row]:
        """Return the rows whose answers have not ended."""
        return [row for row, goes_on in zip(self.rows, self._goes_on, strict=True) if goes_on]

    def free_for(self, pending: Sequence[Row], batch_size: int) -> int:
        """Return how many of the pending rows, the longest first, are to enter now."""
        if not pending:
            return 0
        most_new = self._limits.max_new_tokens
        widest = len(pending[0].prompt) + most_new
        if going := self.going():
            widest = max(widest, self._mask_BT.shape[1] + most_new - min(len(row.answer) for row in going))
        most = max(1, min(batch_size, self._limits.batch_tokens // widest))
        free = most - len(self.rows)
        return free if free > 0 and (not self.rows or free * _SHARE >= most) else 0

    def enter(self, new: Sequence[Row]) -> list[Row]:
        """Read new rows, put them beside the others, and return those whose answers end with the first token."""
        shared = len(self._beginning)
        ids_BN, own_mask_BN = padded([row.ids[shared:] for row in new], self._limits.pad_id, self._model.device)
        mask_BT = pad(own_mask_BN, (shared, 0), value=1)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        cache = self._cache_behind_beginning(len(new))
        last_B = self._next(ids_BN, mask_BT, positions_BT[:, shared:], cache)
        before = len(self.rows)
        if before:
            mask_BT = self._beside(cache, mask_BT)
            last_B = torch.cat([self._last_B, last_B])
        self._cache, self._mask_BT, self._last_B = cache, mask_BT, last_B
        self.rows += new
        self._goes_on += [True] * len(new)
        return self._hear(range(before, len(self.rows)))

    def step(self) -> list[Row]:
        """Give every row its next token, and return those whose answers end with it."""
        going_B = torch.tensor(self._goes_on, dtype=torch.long, device=self._mask_BT.device)
        # Rows that ended stand still until they leave: a position more might be one that the model does not have.
        mask_BT = torch.cat([self._mask_BT, going_B[:, None]], dim=1)
        positions_BN = mask_BT.sum(1, keepdim=True) - 1
        self._last_B = self._next(self._last_B[:, None], mask_BT, positions_BN, self._cache)
        self._mask_BT = mask_BT
        return self._hear(range(len(self.rows)))

    def leave(self) -> None:
        """Let the rows that have ended go, where there are enough of them to be worth a copy of the others."""
        kept = [place for place, goes_on in enumerate(self._goes_on) if goes_on]
        if (len(self.rows) - len(kept)) * _SHARE < len(self.rows):
            return
        if not kept:
            self.clear()
            return
        places_B = torch.tensor(kept, device=self._mask_BT.device)
        mask_BT = self._mask_BT[places_B]
        # Positions that are padding in all rows that stay.
        first = int(mask_BT.any(0).int().argmax())
        for layer in _layers(self._cache):
            places = places_B.to(layer.keys.device)
            layer.keys, layer.values = (each[places][..., first:, :] for each in (layer.keys, layer.values))
        self._mask_BT, self._last_B = mask_BT[:, first:], self._last_B[places_B]
        self.rows, self._goes_on = [self.rows[place] for place in kept], [True] * len(kept)

    def _hear(self, places: range) -> list[Row]:
        """Take the last tokens of rows, and return those whose answers end with it."""
        ended = []
        for place, token in zip(places, self._last_B[places.start :].tolist(), strict=True):
            if self._goes_on[place] and not self._limits.hear(self.rows[place], token):
                self._goes_on[place] = False
                ended.append(self.rows[place])
        return ended

    def _next(
        self, ids_BN: torch.Tensor, mask_BT: torch.Tensor, positions_BN: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Return the likeliest next token of every row; the cache grows by what is read."""
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

    def _beside(self, cache: Any, mask_BT: torch.Tensor) -> torch.Tensor:
        """Put the rows at work before those of a new cache, and return the mask of both."""
        width = max(self._mask_BT.shape[1], mask_BT.shape[1])
        for old, new in zip(_layers(self._cache), _layers(cache), strict=True):
            new.keys = torch.cat([_widened(old.keys, width), _widened(new.keys, width)])
            new.values = torch.cat([_widened(old.values, width), _widened(new.values, width)])
        return torch.cat([_widened(each[..., None], width)[..., 0] for each in (self._mask_BT, mask_BT)])

    def _cache_behind_beginning(self, rows: int) -> Any:
        """Return a cache in which every row has read what all prompts begin with."""
        cache = _new_cache(self._model)
        if not self._beginning:
            return cache
        if self._read_beginning is None:
            read, ids_BN = _new_cache(self._model), torch.tensor([self._beginning], device=self._model.device)
            positions_BN = torch.arange(len(self._beginning), device=self._model.device)[None]
            self._next(ids_BN, torch.ones_like(ids_BN), positions_BN, read)
            self._read_beginning = read
        for index, layer in enumerate(self._read_beginning.layers):
            if layer.is_initialized:
                keys, values = (each.expand(rows, *each.shape[1:]) for each in (layer.keys, layer.values))
                cache.update(keys, values, index)
        return cache


def _shared_beginning(rows: Sequence[Row]) -> tuple[int, ...]:
    """Return what all prompts begin with, where that is worth reading apart; each keeps a token of its own."""
    if len(rows) < 2:
        return ()
    least, greatest = min(row.prompt for row in rows), max(row.prompt for row in rows)
    most = min(len(row.prompt) for row in rows) - 1
    shared = next((at for at in range(most) if least[at] != greatest[at]), most)
    return least[:shared] if shared >= _LEAST_SHARED else ()


def _new_cache(model: PreTrainedModel | PeftModel) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _is_plain(cache: Any) -> bool:
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _layers(cache: Any) -> list[Any]:
    """Return the layers that hold something: some models share keys and values between layers."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _widened(states: torch.Tensor, width: int) -> torch.Tensor:
    """Return keys or values with padding before them, in the last dimension but one."""
    return pad(states, (0, 0, width - states.shape[-2], 0))
