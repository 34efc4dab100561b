"""Greedy generation: by continuous batching where the model's cache allows it, else by the model's own ``generate``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from antidote_llm.evaluation.continuous_batching import continuous_batches, supports_continuous_batching
from antidote_llm.evaluation.judge import Progress
from antidote_llm.evaluation.prompts import Limits, Row, halved_batch_size, longest_first, padded, require_room


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

    Prompts of similar length share a left-padded batch, and equal prompts are answered once. Where the model's cache
    holds the keys and values of every position and nothing else, prompts are answered by continuous batching, and the
    prefix that all prompts share is read once. Other models answer batch by batch, and rows that are unfinished when
    most of their batch has ended move to a later batch. The model's own sampling settings are not used. Up to rounding
    in the model's dtype the answers are those of one prompt at a time; the same call gives the same answers.

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
    copies, answered = Counter(map(tuple, prompts_ids)), 0
    limits = Limits(max_new_tokens, frozenset(eos_ids), pad_id, batch_size, batch_tokens)
    answer_batches = continuous_batches if supports_continuous_batching(model) else static_batches
    with _plain_greedy(model):
        for ended in answer_batches(model, list(rows.values()), limits):
            answered += sum(copies[row.prompt] for row in ended)
            if progress is not None:
                progress(answered, len(prompts_ids))
    return [list(rows[tuple(prompt)].answer) for prompt in prompts_ids]


def static_batches(model: PreTrainedModel | PeftModel, rows: Sequence[Row], limits: Limits) -> Iterator[list[Row]]:
    """Answer rows in place, batch by batch, and yield the rows of each batch whose answers have ended.

    Rows of similar length share a left-padded batch. Rows that are unfinished when most of their batch has ended move
    to a later batch.

    Raises:
        UserError: A single row does not fit into the device's memory.
    """
    pending, later, batch_size = longest_first(rows), list[Row](), limits.batch_size
    while pending:
        widest = len(pending[0].prompt) + limits.max_new_tokens
        batch = pending[: max(1, min(batch_size, limits.batch_tokens // widest))]
        try:
            ended, unfinished = _extend(model, batch, limits)
        except torch.OutOfMemoryError as error:
            batch_size = halved_batch_size(batch, error)
            continue
        pending = pending[len(batch) :]
        later += unfinished
        if not pending:
            pending, later = longest_first(later), []
        yield ended


def _extend(model: PreTrainedModel | PeftModel, batch: Sequence[Row], limits: Limits) -> tuple[list[Row], list[Row]]:
    """Extend the answers of a batch in place, and return the rows that ended and those that did not."""
    input_ids_BT, mask_BT = padded([row.ids for row in batch], limits.pad_id, model.device)
    most_new = max(limits.max_new_tokens - len(row.answer) for row in batch)
    output_BT = model.generate(
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        generation_config=_greedy(most_new, limits),
        stopping_criteria=StoppingCriteriaList([_StopWasting(limits.eos_ids, len(batch), model.device)]),
    )
    ended, unfinished = list[Row](), list[Row]()
    for row, new_ids in zip(batch, output_BT[:, input_ids_BT.shape[1] :].tolist(), strict=True):
        continues = all(limits.append(row, token) for token in new_ids)
        (unfinished if continues else ended).append(row)
    return ended, unfinished


class _StopWasting(StoppingCriteria):
    """Ends a batch once its finished rows have cost as many tokens as reading the unfinished ones again would.

    This is the break-even rule of the ski-rental problem: the total cost is at most twice the optimum.
    """

    def __init__(self, eos_ids: Collection[int], rows: int, device: torch.device) -> None:
        self._eos = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
        self._finished_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self._wasted_tokens = 0

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return whether the batch ends, the same for every row."""
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


@contextmanager
def _plain_greedy(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Put the model into evaluation mode with default generation settings, and restore both at the end."""
    holders = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    configs = [holder.generation_config for holder in holders]
    was_training = model.training
    try:
        model.eval()
        for holder in holders:
            holder.generation_config = GenerationConfig()
        with torch.inference_mode():
            yield
    finally:
        for holder, config in zip(holders, configs, strict=True):
            holder.generation_config = config
        model.train(was_training)
