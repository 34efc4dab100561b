"""Splits that never share a row."""

from __future__ import annotations

import random
from collections.abc import Sequence

from antidote_llm.data.records import Record
from antidote_llm.errors import UserError


def _key(record: Record) -> object:
    """Return what makes two prompts the same: their tokens, or their words whatever the white space."""
    if record.input_ids is not None:
        return record.input_ids[: record.response_start or None]
    return " ".join((record.prompt or record.text or "").split())


def hold_out(records: Sequence[Record], fraction: float, most: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Split off a random share of the prompts; rows with the same prompt stay together.

    Returns:
        The rows kept and the rows held out, each in their first order.

    Raises:
        UserError: There are fewer than two different prompts.
    """
    keys = list(dict.fromkeys(_key(record) for record in records))
    if len(keys) < 2:
        raise UserError("too few different prompts to split some off for evaluation: pass --evaluate DATA or none")
    count = min(most, max(1, round(fraction * len(keys))), len(keys) - 1)
    chosen = set(random.Random(seed).sample(keys, count))
    kept = [record for record in records if _key(record) not in chosen]
    return kept, [record for record in records if _key(record) in chosen]


def require_disjoint(calibration: Sequence[Record], evaluation: Sequence[Record]) -> None:
    """Refuse evaluation prompts that the repair has seen.

    Raises:
        UserError: Lists the first rows that stand in both.
    """
    seen = {_key(record) for record in calibration}
    shared = [record for record in evaluation if _key(record) in seen]
    if shared:
        places = ", ".join(record.origin or "a row" for record in shared[:5])
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise UserError(
            f"{len(shared)} evaluation prompts stand in the calibration rows too: {places}{more}: remove them"
        )
