"""The model's own answers to harmful prompts without a response."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, TokenizedRow, check_token_ids
from antidote_llm.data.thoughts import OPENING, decoded, decoded_reply, is_thinking
from antidote_llm.errors import UserError, listed, setting
from antidote_llm.evaluation.judge import Progress
from antidote_llm.evaluation.prompts import pad_id, require_room, stop_ids
from antidote_llm.io.cache import cache_root
from antidote_llm.io.files import sha256_json, write_json
from antidote_llm.io.strict_json import parse_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

OWN_ANSWER = "own_answer"
_VERSION = 1
_log = logging.getLogger(__name__)


def needs_own_answer(record: Record) -> bool:
    """Return whether a record has a prompt and no response."""
    return record.prompt is not None and not (record.response or "").strip()


def with_own_answers(
    model: PreTrainedModel | PeftModel,
    records: Sequence[Record],
    renderer: Renderer,
    max_new_tokens: int,
    *,
    identity: Mapping[str, Any] | None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Record]:
    """Give every record without a response the model's own greedy answer; others do not change.

    A thought is part of the response only where the renderer lets the model think. Answered records have
    ``own_answer`` in their ``extra``.

    Args:
        model: The model that answers.
        records: Prompts, with or without responses, in any mix with texts and token ids.
        renderer: Renders the prompts; the same must render the records that come back.
        max_new_tokens: Most tokens of an answer.
        identity: JSON values that identify the model, its type and its device, such as ``LoadedModel.identity``:
            answers are cached by it. None uses no cache.
        batch_size: Most prompts answered at once.
        progress: Called with the number of prompts answered and their total.

    Raises:
        UserError: There is no tokenizer, a prompt does not fit the model, or the model says nothing to one.
    """
    unanswered = [record for record in records if needs_own_answer(record)]
    if not unanswered:
        return list(records)
    prompts_ids = renderer.prompts(unanswered)
    rows = [TokenizedRow(ids, len(ids)) for ids in prompts_ids]
    check_token_ids(unanswered, rows, model.get_input_embeddings().weight.shape[0])
    require_room(model, prompts_ids, max_new_tokens, [record.origin for record in unanswered])
    eos_ids = stop_ids(model, renderer.tokenizer, renderer)

    def answers_ids() -> list[list[int]]:
        from antidote_llm.evaluation.generation import generate

        return generate(
            model,
            prompts_ids,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=pad_id(renderer.tokenizer, eos_ids),
            batch_size=batch_size,
            progress=progress,
        )

    if identity is None:
        found = answers_ids()
    else:
        asked = {"prompts": prompts_ids, "ends": list(eos_ids), "max_new_tokens": max_new_tokens}
        found = _cached({"identity": dict(identity), **asked}, answers_ids)
    pairs = list(zip(unanswered, found, strict=True))
    _require_answers(pairs, renderer)
    answered = iter([_answered(record, ids, renderer) for record, ids in pairs])
    return [next(answered) if needs_own_answer(record) else record for record in records]


def _require_answers(pairs: Sequence[tuple[Record, Sequence[int]]], renderer: Renderer) -> None:
    silent = [record.origin or "a row" for record, ids in pairs if not decoded_reply(renderer.tokenizer, ids)]
    if silent:
        raise UserError(
            f"{listed(silent)}: the model says nothing to this prompt: give the row a "
            f"response, allow longer answers ({setting('max_new_tokens')}), or leave the row out"
        )


def _answered(record: Record, answer_ids: Sequence[int], renderer: Renderer) -> Record:
    response = decoded_reply(renderer.tokenizer, answer_ids)
    if renderer.thinking:
        response = decoded(renderer.tokenizer, answer_ids)
        # A thought that the prompt opens is opened in the response too, so that the response is complete by itself.
        if is_thinking(renderer.prompt_text(record)):
            response = f"{OPENING}\n{response}"
    return replace(record, response=response, extra={**record.extra, OWN_ANSWER: True})


def _cached(question: Mapping[str, Any], answers_ids: Callable[[], list[list[int]]]) -> list[list[int]]:
    """Return the answers from the cache, or generate them and write them there."""
    import torch
    import transformers

    key = sha256_json(
        {**question, "version": _VERSION, "torch": torch.__version__, "transformers": transformers.__version__}
    )
    path = cache_root() / "own_answers" / f"{key}.json"
    found = _read(path, key)
    if found is None:
        found = answers_ids()
        _write(path, key, found)
    return found


def _write(path: Path, key: str, answers_ids: list[list[int]]) -> None:
    try:
        write_json(path, {"key": key, "answers": answers_ids, "answers_sha256": sha256_json(answers_ids)})
    except OSError as error:
        raise UserError(
            f"{path.parent}: answers cannot be kept there: {error.strerror}: "
            f"set ANTIDOTE_CACHE to another folder, or pass {setting('no_cache')}"
        ) from error


def _read(path: Path, key: str) -> list[list[int]] | None:
    """Return cached answers, or None where there are none or the file is damaged: they are then generated again."""
    if not path.is_file():
        return None
    try:
        kept = parse_json(path.read_bytes())
        answers: list[list[int]] = kept["answers"]
        whole = (kept["key"], kept["answers_sha256"]) == (key, sha256_json(answers))
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if whole:
        return answers
    _log.warning("%s is damaged and is not used: answers are generated anew", path)
    return None
