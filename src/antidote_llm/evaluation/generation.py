"""Greedy answers by the model's own ``generate``, for models whose cache is their own affair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from antidote_llm.errors import UserError, listed
from antidote_llm.evaluation.continuous_batching import in_slots, keeps_every_position
from antidote_llm.evaluation.prompts import Limits, Row, half_of, longest_first, padded


def in_batches(model: PreTrainedModel | PeftModel, rows: Sequence[Row], limits: Limits) -> Iterator[list[Row]]:
    """Answer rows in place, and yield those of each batch whose answers have ended.

    Rows of like length share a left-padded batch; those that are still going when most of their batch has ended move to
    a later one.

    Raises:
        UserError: A row alone does not fit into the device's memory.
    """
    pending, later, batch_size = longest_first(rows), list[Row](), limits.batch_size
    while pending:
        widest = len(pending[0].prompt) + limits.max_new_tokens
        batch = pending[: max(1, min(batch_size, limits.batch_tokens // widest))]
        try:
            ended, unfinished = _extend(model, batch, limits)
        except torch.OutOfMemoryError as error:
            batch_size = half_of(batch, error)
            continue
        pending = pending[len(batch) :]
        later += unfinished
        if not pending:
            pending, later = longest_first(later), []
        yield ended


def _extend(model: PreTrainedModel | PeftModel, batch: Sequence[Row], limits: Limits) -> tuple[list[Row], list[Row]]:
    """Lengthen the answers of a batch in place, and return the rows that ended and those that did not."""
    input_ids_BT, mask_BT = padded([row.ids for row in batch], limits.pad_id, model.device)
    room = max(limits.max_new_tokens - len(row.answer) for row in batch)
    output_BT = model.generate(
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        generation_config=_greedy(room, limits),
        stopping_criteria=StoppingCriteriaList([_StopWasting(limits.eos_ids, len(batch), model.device)]),
    )
    ended, unfinished = list[Row](), list[Row]()
    for row, new_ids in zip(batch, output_BT[:, input_ids_BT.shape[1] :].tolist(), strict=True):
        goes_on = all(limits.hear(row, token) for token in new_ids)
        (unfinished if goes_on else ended).append(row)
    return ended, unfinished


class _StopWasting(StoppingCriteria):
    """Ends a batch once its finished rows have cost as many tokens as reading the others anew will.

    That is the rule for renting skis: what is wasted and what is read anew stay within twice the lesser of the two.
    """

    def __init__(self, eos_ids: Collection[int], rows: int, device: torch.device) -> None:
        self._eos = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
        self._finished_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self._wasted_tokens = 0

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return, for every row alike, whether the batch is to end."""
        rows, tokens = input_ids.shape
        self._finished_B |= torch.isin(input_ids[:, -1], self._eos)
        finished = int(self._finished_B.sum())
        self._wasted_tokens += finished
        ends = finished > 0 and self._wasted_tokens >= (rows - finished) * tokens
        return torch.full((rows,), ends, device=input_ids.device)


def _greedy(max_new_tokens: int, limits: Limits) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(limits.eos_ids) or None,
        pad_token_id=limits.pad_id,
    )


Progress: TypeAlias = Callable[[int, int], None]


def generate(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    batch_size: int = 64,
    batch_tokens: int = 16_384,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Return the greedy answer to each prompt, in the order of the prompts.

    Prompts of like length share a left-padded batch, and equal prompts are answered once. Where the model keeps the
    keys and values of every position and nothing else, an answer that ends makes room for the next prompt, and what all
    prompts begin with is read once; other models answer batch by batch, and rows that are still going when most of
    their batch has ended move to a later one. The model's own sampling settings are set aside for the call. Up to
    rounding in the model's dtype the answers are those of one prompt at a time; the same call gives the same answers.

    Args:
        model: Any causal language model of transformers, or one with an adapter.
        prompts_ids: Token ids of each prompt.
        max_new_tokens: Most tokens of an answer.
        eos_ids: Tokens that end an answer; they are not part of it.
        pad_id: Any token id; the attention mask hides it.
        batch_size: Most prompts in a batch; halved where the device's memory does not suffice.
        batch_tokens: Most tokens in a batch, prompts and answers and padding together.
        progress: Called with the number of prompts answered and their total.

    Raises:
        UserError: A prompt is empty, or has no room for its answer in the model's positions or the device's memory.
    """
    rows = {prompt: Row(prompt) for prompt in map(tuple, prompts_ids)}
    require_room(model, rows, max_new_tokens)
    asked, answered = Counter(map(tuple, prompts_ids)), 0
    limits = Limits(max_new_tokens, frozenset(eos_ids), pad_id, batch_size, batch_tokens)
    answering = in_slots if keeps_every_position(model) else in_batches
    with _plain_greedy(model):
        for ended in answering(model, list(rows.values()), limits):
            answered += sum(asked[row.prompt] for row in ended)
            if progress is not None:
                progress(answered, len(prompts_ids))
    return [list(rows[tuple(prompt)].answer) for prompt in prompts_ids]


def room_for_answers(model: PreTrainedModel | PeftModel, prompts_ids: Collection[Sequence[int]]) -> int | None:
    """Return how many positions the longest prompt leaves, None where the model names no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(positions) - max(map(len, prompts_ids), default=0) if positions else None


def require_room(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Collection[Sequence[int]],
    max_new_tokens: int,
    origins: Sequence[str] = (),
) -> None:
    """Refuse prompts that leave no room for their answers; origins say where each stands, for the message.

    Raises:
        UserError: A prompt is empty, or the longest and its answer take more than the model's positions.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    if not all(prompts_ids):
        raise UserError("a prompt renders to no tokens: leave it out")
    room = room_for_answers(model, prompts_ids)
    if prompts_ids and room is not None and room < max_new_tokens:
        lengths = list(map(len, prompts_ids))
        longest = max(lengths)
        fits = longest + room - max_new_tokens
        crowded = [origin for origin, length in zip(origins, lengths, strict=False) if length > fits and origin]
        origin = origins[lengths.index(longest)] if origins else ""
        where = f"{origin}: " if origin else ""
        mend = f"pass --max-new-tokens {room} or less" if room > 0 else _leave_out(origin, crowded)
        raise UserError(
            f"{where}the longest prompt has {longest} tokens and its answer up to {max_new_tokens}, "
            f"more than the model's {longest + room} positions: {mend}"
        )


def _leave_out(longest: str, crowded: Sequence[str]) -> str:
    others = [origin for origin in dict.fromkeys(crowded) if origin != longest]
    if not others:
        return "leave it out"
    return f"leave it out, and likewise {listed(others)}"


@contextmanager
def _plain_greedy(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Put the model into evaluation mode without generation settings of its own, and undo both at the end."""
    holders = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    settings = [holder.generation_config for holder in holders]
    trains = model.training
    try:
        model.eval()
        for holder in holders:
            holder.generation_config = GenerationConfig()
        with torch.inference_mode():
            yield
    finally:
        for holder, own in zip(holders, settings, strict=True):
            holder.generation_config = own
        model.train(trains)
