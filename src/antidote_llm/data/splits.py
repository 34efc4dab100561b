"""Splits that never share a prompt."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence

from antidote_llm.data.records import Record
from antidote_llm.errors import UserError, listed


def prompt_key(record: Record) -> object:
    """Return what makes two prompts the same: their tokens, or the words of all the user's turns.

    Case, kinds of characters (NFKC), invisible ones (format), white space and punctuation at both ends do not count,
    nor do system prompts.
    """
    if record.input_ids is not None:
        return record.input_ids[: record.response_start or None]
    if record.prompt is None:
        return (_words(record.text or ""),)
    return tuple(_words(turn.content) for turn in record.conversation() if turn.role == "user")


def _words(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not folded.isascii():
        folded = "".join(character for character in folded if unicodedata.category(character) != "Cf")
    start, end = 0, len(folded)
    while start < end and _is_outer(folded[start]):
        start += 1
    while end > start and _is_outer(folded[end - 1]):
        end -= 1
    # A prompt of nothing but punctuation is its punctuation.
    return " ".join((folded[start:end] or folded).split())


def _is_outer(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def hold_out(records: Sequence[Record], fraction: float, most: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Split off a random share of the prompts; rows with the same prompt stay together.

    Returns:
        The rows kept and the rows held out, each in their first order.

    Raises:
        UserError: There are fewer than two different prompts.
    """
    key_of = [prompt_key(record) for record in records]
    keys = list(dict.fromkeys(key_of))
    if len(keys) < 2:
        raise UserError("too few different prompts to split some off for evaluation: pass --evaluate DATA or none")
    count = min(most, max(1, round(fraction * len(keys))), len(keys) - 1)
    chosen = set(random.Random(seed).sample(keys, count))
    kept = [record for record, key in zip(records, key_of, strict=True) if key not in chosen]
    return kept, [record for record, key in zip(records, key_of, strict=True) if key in chosen]


def require_disjoint(calibration: Sequence[Record], evaluation: Sequence[Record]) -> None:
    """Refuse evaluation prompts that the repair has seen.

    Raises:
        UserError: Lists the evaluation rows that stand in both, each with its first calibration row.
    """
    seen: dict[object, Record] = {}
    for record in calibration:
        seen.setdefault(prompt_key(record), record)
    shared = [(record, seen[key]) for record in evaluation if (key := prompt_key(record)) in seen]
    if not shared:
        return
    pairs = listed([f"{asked.origin or 'a row'} = {known.origin or 'a row'}" for asked, known in shared])
    raise UserError(f"{len(shared)} evaluation prompts stand in the calibration rows too: {pairs}: remove them")
