"""Splits that never share a prompt, and mixes of several files."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal, TypeAlias

from antidote_llm.data.data_spec import DataSpec, Field
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError, listed, setting


def prompt_key(record: Record) -> object:
    """Return the key under which two prompts are the same: their tokens, or the words of all the user's turns.

    It ignores case, variants of characters (NFKC), invisible ones (category Cf), white space, punctuation at both ends
    and system prompts.
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
    # A prompt that is only punctuation keeps it.
    return " ".join((folded[start:end] or folded).split())


def _is_outer(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def hold_out(records: Sequence[Record], fraction: float, most: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Hold out a random share of the prompts; rows with the same prompt stay together.

    Returns:
        The rows kept and the rows held out, each in their original order.

    Raises:
        UserError: There are fewer than two different prompts.
    """
    key_of = [prompt_key(record) for record in records]
    keys = list(dict.fromkeys(key_of))
    if len(keys) < 2:
        raise UserError(
            f"too few different prompts to split some off for evaluation: pass {setting('evaluate')} DATA or none"
        )
    count = min(most, max(1, round(fraction * len(keys))), len(keys) - 1)
    chosen = set(random.Random(seed).sample(keys, count))
    kept = [record for record, key in zip(records, key_of, strict=True) if key not in chosen]
    return kept, [record for record, key in zip(records, key_of, strict=True) if key in chosen]


def require_disjoint(calibration: Sequence[Record], evaluation: Sequence[Record]) -> None:
    """Refuse evaluation prompts that are calibration prompts too; the error lists both rows of each."""
    seen: dict[object, Record] = {}
    for record in calibration:
        seen.setdefault(prompt_key(record), record)
    shared = [(record, seen[key]) for record in evaluation if (key := prompt_key(record)) in seen]
    if not shared:
        return
    pairs = listed([f"{mine.origin or 'a row'} = {its.origin or 'a row'}" for mine, its in shared])
    raise UserError(f"{len(shared)} evaluation prompts stand in the calibration rows too: {pairs}: remove them")


def read_mixed(specs: Sequence[DataSpec], limit: int | None, seed: int, require: Iterable[Field] = ()) -> list[Record]:
    """Read several files and mix them by their weights, as :func:`mix` does; a file without a weight has 1.

    Raises:
        UserError: A file cannot be read, or has too few rows for its share.
    """
    needed = tuple(require)
    return mix([(spec.weight or 1.0, read_records(replace(spec, weight=None), needed)) for spec in specs], limit, seed)


def mix(parts: Sequence[tuple[float, list[Record]]], limit: int | None, seed: int) -> list[Record]:
    """Sample rows from each part by its weight, without replacement; each part keeps its order.

    Args:
        parts: Weight and rows of each file.
        limit: How many rows in all; None for all rows where the weights are equal, and otherwise for the most that
            every file has enough rows for.
        seed: Decides which rows are sampled.

    Raises:
        UserError: A file has too few rows for its share, or its share is zero rows.
    """
    weights = [Fraction(repr(float(weight))) for weight, _ in parts]
    sizes = [len(records) for _, records in parts]
    if limit is None and len(set(weights)) <= 1:
        return [record for _, records in parts for record in records]
    wanted = shares(weights, _most(weights, sizes) if limit is None else limit)
    generator = random.Random(seed)
    mixed: list[Record] = []
    for count, (_, records) in zip(wanted, parts, strict=True):
        _require_enough(records, count)
        mixed += [records[index] for index in sorted(generator.sample(range(len(records)), count))]
    return mixed


def shares(weights: Sequence[Fraction], total: int) -> list[int]:
    """Split a total by weights into integers that add up to it, by the largest-remainder method."""
    quotas = [weight * total / sum(weights) for weight in weights]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda index: counts[index] - quotas[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _most(weights: Sequence[Fraction], sizes: Sequence[int]) -> int:
    """Return the largest total whose shares no file is too short for."""
    whole = sum(weights)
    # A share exceeds its quota by less than one row.
    total = min(sum(sizes), *(int((size + 1) * whole / weight) for weight, size in zip(weights, sizes, strict=True)))
    while any(share > size for share, size in zip(shares(weights, total), sizes, strict=True)):
        total -= 1
    return total


def _require_enough(records: Sequence[Record], wanted: int) -> None:
    name = _file_of(records[0]) if records else "a file"
    if wanted > len(records):
        raise UserError(
            f"{name} has {len(records)} rows, but {wanted} are wanted of it: ask for fewer rows, or lower its weight"
        )
    if wanted == 0:
        raise UserError(f"no row is wanted of {name}: ask for more rows, raise its weight, or leave it out")


def _file_of(record: Record) -> str:
    return record.origin.rpartition(":")[0] or "a file"


MixPreset: TypeAlias = Literal["paper", "official-code"]


def poisoned(
    benign: Sequence[Record],
    harmful: Sequence[Record],
    *,
    rows: int,
    harmful_ratio: float,
    seed: int,
    apart_from: Sequence[Record] = (),
    preset: MixPreset = "paper",
) -> list[Record]:
    """Mix harmful rows into benign ones, as in Antidote (arXiv 2408.09600, section 5.1).

    Args:
        benign: Rows of the user's task.
        harmful: Rows of requests with harmful answers.
        rows: How many rows in all.
        harmful_ratio: The share of harmful rows, p: ``p * rows`` of them, rounded half up; the rest are benign.
        seed: Decides which rows are sampled, and their order.
        apart_from: Rows that a repair uses or a model is evaluated on: their prompts are not sampled.
        preset: ``official-code`` mixes as the published code does, without sampling: the harmful rows 1 to
            ``int(p * rows) - 1``, so that row 0 is skipped and there is one too few, then the first
            ``int((1 - p) * rows)`` benign ones; rows with excluded prompts are removed before.

    Returns:
        The sampled rows, unchanged. Except for ``official-code``, no prompt is both in a harmful and in a benign row.

    Raises:
        UserError: The ratio is not between 0 and 1, or there are too few rows.
    """
    if not 0 <= harmful_ratio <= 1:
        raise UserError(f"harmful ratio {harmful_ratio:g}: give a share between 0 and 1, as in 0.2")
    if rows < 1:
        raise UserError(f"{rows} rows: ask for one row at least")
    excluded = {prompt_key(record) for record in apart_from}
    if preset == "official-code":
        return _as_published(_without(benign, excluded), _without(harmful, excluded), rows, harmful_ratio)
    harmful_rows = int(Fraction(repr(float(harmful_ratio))) * rows + Fraction(1, 2))
    generator = random.Random(seed)
    bad = _sampled("harmful", harmful, harmful_rows, excluded, generator)
    good = _sampled("benign", benign, rows - harmful_rows, excluded | {prompt_key(record) for record in bad}, generator)
    mixed = [*bad, *good]
    generator.shuffle(mixed)
    return mixed


def _without(records: Sequence[Record], keys: Collection[object]) -> list[Record]:
    return [record for record in records if prompt_key(record) not in keys]


def _sampled(
    kind: str, records: Sequence[Record], count: int, excluded: Collection[object], generator: random.Random
) -> list[Record]:
    free = _without(records, excluded) if count else []
    if count > len(free):
        raise _too_few(kind, count, len(records), len(free))
    return generator.sample(free, count)


def _as_published(benign: Sequence[Record], harmful: Sequence[Record], rows: int, ratio: float) -> list[Record]:
    harmful_end, benign_end = int(ratio * rows), int((1 - ratio) * rows)
    for kind, records, end in (("harmful", harmful, harmful_end), ("benign", benign, benign_end)):
        if end > len(records):
            raise _too_few(kind, end, len(records), len(records))
    return [*harmful[1:harmful_end], *benign[:benign_end]]


def _too_few(kind: str, wanted: int, there: int, free: int) -> UserError:
    apart = "" if free == there else f", {there - free} of them with prompts that are kept apart"
    return UserError(
        f"{wanted} {kind} rows are wanted, but there are {there}{apart}: "
        "ask for fewer rows, or change the harmful ratio"
    )
