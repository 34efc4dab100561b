"""Which column of a file holds which field: found once for all rows that have the same columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from antidote_llm.data.spec import BESIDE_A_PROMPT, FIELDS, KINDS, Field
from antidote_llm.data.unread import REFUSED_BESIDE_A_PROMPT, REFUSED_BESIDE_A_TEXT, may_count, plain

# What else the readers of a format put into a prompt that comes from a column of this name.
FORMATS: Mapping[str, Mapping[Field, tuple[str, ...]]] = {
    # Alpaca's and Dolly's, and LLaMA-Factory's of the former.
    "instruction": {"input": ("input", "context"), "history": ("history",)},
    # HarmBench's.
    "Behavior": {"context": ("ContextString",)},
}
# Where TRL puts the answer to a column prompt.
COMPLETION = "completion"


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a row, by what they are for.

    Attributes:
        kinds: What the row can be, the first that is not null counts.
        columns: The columns that may hold each field, the first that is filled counts.
        extra_of_a_prompt: Columns that are no field of a row of prompt or messages.
        extra_of_a_text: Columns that are no field of a row of text or token ids.
        refused_beside_a_prompt: Columns without which a row of prompt or messages means something else.
        refused_beside_a_text: Columns without which any row does.
        named: Columns that may be a part of the prompt.
    """

    kinds: tuple[Field, ...]
    columns: Mapping[Field, tuple[str, ...]]
    extra_of_a_prompt: tuple[str, ...]
    extra_of_a_text: tuple[str, ...]
    refused_beside_a_prompt: tuple[str, ...]
    refused_beside_a_text: tuple[str, ...]
    named: tuple[str, ...]


@lru_cache(maxsize=256)
def layout_of(names: tuple[str, ...], mapped: tuple[tuple[Field, str], ...], ignored: tuple[str, ...]) -> Layout:
    """Find the layout of rows with these columns, the columns that are mapped, and those that are ignored."""
    by_name = dict(mapped)
    columns = {name: tuple(_columns_of(name, names, by_name, ignored)) for name in FIELDS}
    always = {column.partition(".")[0] for name in FIELDS if name not in BESIDE_A_PROMPT for column in columns[name]}
    beside = {column.partition(".")[0] for name in BESIDE_A_PROMPT for column in columns[name]}
    skipped = {"response_start", *ignored, *by_name.values()}
    free = [name for name in names if name not in skipped and name not in always]
    # What a format puts into the prompt is found there by its text.
    known = {column for column in beside if column not in by_name.values()} - {"system"}
    return Layout(
        kinds=tuple(name for name in KINDS if name in by_name) or KINDS,
        columns=columns,
        extra_of_a_prompt=tuple(name for name in free if name not in beside),
        extra_of_a_text=tuple(free),
        refused_beside_a_prompt=tuple(name for name in free if plain(name) in REFUSED_BESIDE_A_PROMPT),
        refused_beside_a_text=tuple(name for name in free if plain(name) in REFUSED_BESIDE_A_TEXT),
        named=tuple(name for name in free if may_count(name) and (name not in beside or name in known)),
    )


def _columns_of(
    field: Field, names: tuple[str, ...], mapped: Mapping[Field, str], ignored: tuple[str, ...]
) -> Iterator[str]:
    if field in mapped:
        yield mapped[field]
    elif field in BESIDE_A_PROMPT and field != "system":
        beside = FORMATS.get(mapped.get("prompt", "prompt"), {}).get(field, ())
        taken = (*ignored, *mapped.values())
        yield from (column for column in beside if column in names and column not in taken)
    elif field in names and field not in ignored:
        yield field
    elif (
        field == "response"
        and "response" not in names
        and "prompt" in names
        and COMPLETION in names
        and COMPLETION not in ignored
        and not mapped.keys() - {"system"}
    ):
        yield COMPLETION
