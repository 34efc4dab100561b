"""Greedy answers by the model's own ``generate``, for models whose cache is their own affair."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from antidote_llm.evaluation.rows import Limits, Row, half_of, longest_first, padded


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
