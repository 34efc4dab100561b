"""Columns and fields of messages that the readers of other formats use and this one does not: refused or named."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from antidote_llm.data.data_spec import BESIDE_A_PROMPT, FIELDS, KINDS, Field, quoted
from antidote_llm.errors import UserError

_TOOLS = ("tools", "functions", "function_call", "tool_calls", "tool_call_id")
_MEDIA = (
    *(f"{kind}{ending}" for kind in ("image", "video", "audio") for ending in ("", "s", "_url", "_path", "_file")),
    "imagefilename",
    "pixel_values",
)
# A row without these is another row.
REFUSED_BESIDE_A_PROMPT = frozenset((*_TOOLS, *_MEDIA, "documents", "chat_template", "chat_template_kwargs"))
REFUSED_BESIDE_A_TEXT = frozenset(_MEDIA)
_REFUSED_IN_A_MESSAGE = frozenset((*_TOOLS, *_MEDIA, "documents"))
# These may be a part of the prompt, or of the answer, or nothing of the kind: only the user knows.
NAMED = frozenset(
    (
        # What a model is told before anything else.
        "system_prompt",
        "system_message",
        "sys_prompt",
        "systemprompt",
        "system",
        "system_instruction",
        "systeminstruction",
        "developer_prompt",
        "persona",
        "preamble",
        # What was said before.
        "history",
        "conversation_history",
        "chat_history",
        "dialogue_history",
        "few_shot",
        "demonstrations",
        # What goes before or behind the prompt.
        "prefix",
        "suffix",
        "prompt_prefix",
        "prompt_suffix",
        "user_prompt",
        "user_input",
        # The request itself, or what it is about.
        "instruction",
        "instructions",
        "input",
        "inputs",
        "question",
        "query",
        "choices",
        "options",
        "context",
        "contexts",
        "contextstring",
        "context_string",
        "ctx",
        "additional_context",
        "extra_context",
        "background",
        "knowledge",
        "passage",
        "passages",
        "paragraph",
        "paragraphs",
        "article",
        "document",
        "excerpt",
        "source_text",
        "source_document",
        "premise",
        "hypothesis",
        "evidence",
        "hint",
        "endings",
        # Of the answer.
        "tool_choice",
        "reasoning",
        "reasoning_content",
        "thinking",
        "thought",
        "thoughts",
        "cot",
        "complex_cot",
        "chain_of_thought",
        "rationale",
    )
)
# The answers to choose from, a column each: A, option_b, choice3, opc, sol1.
_OPTION = re.compile(r"[a-e]|op[a-e]|(option|choice|answer|sol|ending)_?([a-e]|\d)")
# Where data sets put an answer.
ANSWERS = ("completion", "chosen", "rejected", "output", "answer", "target", "solution")
_ANSWERS = (*ANSWERS, "response", "assistant", "completions", "responses", "outputs", "answers", "preferred_output")
_NAMED_IN_A_MESSAGE = frozenset(("name", "prefix", "tool_choice"))
_HARMLESS = frozenset(("role", "content", "from", "value"))
_NOTHING = ("", "[]", "{}", "null", "none", "nan")


def is_filled(value: Any) -> bool:
    """Say whether a cell holds anything; lists and objects that hold nothing do not, however deep."""
    return any(map(_says_something, _leaves(value)))


def answer_columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns, of those that are no field of their rows, that most likely hold an answer."""
    found = {str(name): plain(name) for cells in rows for name, cell in cells.items() if is_filled(cell)}
    likely = [name for name, known in found.items() if known in _ANSWERS]
    return sorted(likely, key=lambda name: _ANSWERS.index(found[name]))


def is_refused(name: object) -> bool:
    """Say whether a row of a prompt means something else without a column of this name."""
    return plain(name) in REFUSED_BESIDE_A_PROMPT


def may_count(name: object) -> bool:
    """Say whether a column of this name may be a part of the prompt, or of the answer."""
    known = plain(name)
    return known in NAMED or _OPTION.fullmatch(known) is not None


def is_nan(value: Any) -> bool:
    """Say whether a cell is what pandas writes for a missing one."""
    return isinstance(value, float) and math.isnan(value)


def require_unfilled(cells: Mapping[str, Any], refused: Iterable[str], origin: str) -> None:
    """Refuse a row whose meaning depends on a column that is not read.

    Raises:
        UserError: Names the first such column.
    """
    for name in refused:
        if is_filled(cells[name]):
            raise UserError(
                f"{origin}: column '{name}' cannot be read, and the row means something else without it: leave the "
                f"row out, or pass ignore={quoted(name)} to read it without"
            )


def require_no_more_said(message: Mapping[str, Any], where: str, ignored: Container[str]) -> None:
    """Refuse a message that holds a call of a tool, or something that is no text.

    Raises:
        UserError: Names the first such field.
    """
    for name, value in message.items():
        if name not in _HARMLESS and plain(name) in _REFUSED_IN_A_MESSAGE and name not in ignored and is_filled(value):
            raise UserError(
                f"{where}: its '{name}' cannot be read: leave the row out, or pass ignore={quoted(name)} to read the "
                "message without"
            )


def unread_columns(cells: Mapping[str, Any], names: Iterable[str], said: str) -> Iterator[str]:
    """Return the columns that hold something, and whose text stands neither in the prompt nor in its answer."""
    for name in names:
        if is_filled(cells[name]) and not _is_in(cells[name], said):
            yield name


def unread_in_messages(messages: Iterable[Any], ignored: Container[str]) -> Iterator[str]:
    """Return the fields of messages that may count and are not read, each once."""
    yield from dict.fromkeys(
        name
        for message in messages
        if isinstance(message, Mapping)
        for name in _NAMED_IN_A_MESSAGE
        if name not in ignored and is_filled(message.get(name))
    )


def _is_in(value: Any, said: str) -> bool:
    return all(text.strip() in said for text in _texts(value))


def _texts(value: Any) -> Iterable[str]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, str))


def _says_something(leaf: Any) -> bool:
    if isinstance(leaf, str):
        return leaf.strip().lower() not in _NOTHING
    return not (leaf is None or leaf is False or is_nan(leaf))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what lists and objects hold that is neither, in order; they may be deeper than functions can call."""
    pending = [value]
    while pending:
        last = pending.pop()
        if isinstance(last, Mapping):
            pending.extend(reversed(list(last.values())))
        elif isinstance(last, list | tuple):
            pending.extend(reversed(last))
        else:
            yield last


def plain(name: object) -> str:
    """Return a name in the one form in which these columns are known."""
    return re.sub("[ -]", "_", str(name)).lower()


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
