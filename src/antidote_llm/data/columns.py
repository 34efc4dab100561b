"""Columns and message fields that this reader does not use but other readers do: they are refused or reported."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from antidote_llm.data.data_spec import FIELDS, KINDS, PARTS_OF_A_PROMPT, Field, quoted
from antidote_llm.errors import UserError

_TOOLS = ("tools", "functions", "function_call", "tool_calls", "tool_call_id")
_MEDIA = (
    *(f"{kind}{ending}" for kind in ("image", "video", "audio") for ending in ("", "s", "_url", "_path", "_file")),
    "imagefilename",
    "pixel_values",
)
# Without these columns, a row means something else.
_REFUSED_WITH_A_PROMPT = frozenset((*_TOOLS, *_MEDIA, "documents", "chat_template", "chat_template_kwargs"))
_REFUSED_WITH_A_TEXT = frozenset(_MEDIA)
_REFUSED_IN_A_MESSAGE = frozenset((*_TOOLS, *_MEDIA, "documents"))
# These may be part of the prompt, part of the answer, or neither: only the user knows.
NAMED = frozenset(
    (
        # System prompts.
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
        # Earlier turns.
        "history",
        "conversation_history",
        "chat_history",
        "dialogue_history",
        "few_shot",
        "demonstrations",
        # Text before or after the prompt.
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
        # Parts of the answer.
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
# Multiple-choice answers, one column each: A, option_b, choice3, opc, sol1.
_OPTION = re.compile(r"[a-e]|op[a-e]|(option|choice|answer|sol|ending)_?([a-e]|\d)")
# Where data sets put an answer.
ANSWERS = ("completion", "chosen", "rejected", "output", "answer", "target", "solution")
_ANSWERS = (*ANSWERS, "response", "assistant", "completions", "responses", "outputs", "answers", "preferred_output")
_NAMED_IN_A_MESSAGE = frozenset(("name", "prefix", "tool_choice"))
_CONTENT = frozenset(("role", "content", "from", "value"))
_NOTHING = ("", "[]", "{}", "null", "none", "nan")


def is_filled(value: Any) -> bool:
    """Whether a cell holds anything; empty lists and objects do not, however deep."""
    return any(map(_is_filled_leaf, _leaves(value)))


def answer_columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the unused columns that most likely hold an answer, the likeliest first."""
    found = {str(name): plain(name) for cells in rows for name, cell in cells.items() if is_filled(cell)}
    likely = [name for name, known in found.items() if known in _ANSWERS]
    return sorted(likely, key=lambda name: _ANSWERS.index(found[name]))


def is_refused(name: object) -> bool:
    """Whether a row with a prompt means something else without a column of this name."""
    return plain(name) in _REFUSED_WITH_A_PROMPT


def may_count(name: object) -> bool:
    """Whether a column of this name may be part of the prompt or of the answer."""
    known = plain(name)
    return known in NAMED or _OPTION.fullmatch(known) is not None


def is_nan(value: Any) -> bool:
    """Whether a cell is NaN, which pandas writes for a missing one."""
    return isinstance(value, float) and math.isnan(value)


def require_unfilled(cells: Mapping[str, Any], refused: Iterable[str], origin: str) -> None:
    """Refuse a row whose meaning depends on a column that is not read."""
    for name in refused:
        if is_filled(cells[name]):
            raise UserError(
                f"{origin}: column '{name}' cannot be read, and the row means something else without it: leave the "
                f"row out, or pass ignore={quoted(name)} to read it without"
            )


def require_only_text(message: Mapping[str, Any], where: str, ignored: Container[str]) -> None:
    """Refuse a message that holds a tool call or anything else that is not text."""
    for name, value in message.items():
        if name not in _CONTENT and plain(name) in _REFUSED_IN_A_MESSAGE and name not in ignored and is_filled(value):
            raise UserError(
                f"{where}: its '{name}' cannot be read: leave the row out, or pass ignore={quoted(name)} to read the "
                "message without"
            )


def unread_columns(cells: Mapping[str, Any], names: Iterable[str], read: str) -> Iterator[str]:
    """Yield the filled columns whose text is not part of what was read: prompt, history and response."""
    for name in names:
        if is_filled(cells[name]) and not _is_in(cells[name], read):
            yield name


def unread_in_messages(messages: Iterable[Any], ignored: Container[str]) -> Iterator[str]:
    """Yield the fields of messages that may matter and are not read, each once."""
    yield from dict.fromkeys(
        name
        for message in messages
        if isinstance(message, Mapping)
        for name in _NAMED_IN_A_MESSAGE
        if name not in ignored and is_filled(message.get(name))
    )


def _is_in(value: Any, read: str) -> bool:
    return all(text.strip() in read for text in _texts(value))


def _texts(value: Any) -> Iterable[str]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, str))


def _is_filled_leaf(leaf: Any) -> bool:
    if isinstance(leaf, str):
        return leaf.strip().lower() not in _NOTHING
    return not (leaf is None or leaf is False or is_nan(leaf))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the values inside lists and objects, in order, without recursion: nesting may exceed Python's limit."""
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
    """Return a name in lower case with underscores, as the names above are written."""
    return re.sub("[ -]", "_", str(name)).lower()


# Further columns that a format's readers put into a prompt that comes from a column of this name.
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
    """The columns of a row by their use.

    Attributes:
        kinds: What the row can be; the first that is not null counts.
        columns: The columns that may hold each field; the first that is filled counts.
        extra_of_a_prompt: Columns that no field uses in a row of prompt or messages.
        extra_of_a_text: Columns that no field uses in a row of text or token ids.
        refused_with_a_prompt: Columns without which a row of prompt or messages means something else.
        refused_with_a_text: Columns without which any row means something else.
        named: Columns that may be part of the prompt.
    """

    kinds: tuple[Field, ...]
    columns: Mapping[Field, tuple[str, ...]]
    extra_of_a_prompt: tuple[str, ...]
    extra_of_a_text: tuple[str, ...]
    refused_with_a_prompt: tuple[str, ...]
    refused_with_a_text: tuple[str, ...]
    named: tuple[str, ...]


@lru_cache(maxsize=256)
def layout_of(names: tuple[str, ...], mapped: tuple[tuple[Field, str], ...], ignored: tuple[str, ...]) -> Layout:
    """Return the layout of rows with these columns, given the mapped columns and the ignored ones."""
    by_name = dict(mapped)
    columns = {name: tuple(_columns_of(name, names, by_name, ignored)) for name in FIELDS}
    always = {column.partition(".")[0] for name in FIELDS if name not in PARTS_OF_A_PROMPT for column in columns[name]}
    parts = {column.partition(".")[0] for name in PARTS_OF_A_PROMPT for column in columns[name]}
    skipped = {"response_start", *ignored, *by_name.values()}
    free = [name for name in names if name not in skipped and name not in always]
    # Text that a format puts into the prompt is found there.
    known = {column for column in parts if column not in by_name.values()} - {"system"}
    return Layout(
        kinds=tuple(name for name in KINDS if name in by_name) or KINDS,
        columns=columns,
        extra_of_a_prompt=tuple(name for name in free if name not in parts),
        extra_of_a_text=tuple(free),
        refused_with_a_prompt=tuple(name for name in free if plain(name) in _REFUSED_WITH_A_PROMPT),
        refused_with_a_text=tuple(name for name in free if plain(name) in _REFUSED_WITH_A_TEXT),
        named=tuple(name for name in free if may_count(name) and (name not in parts or name in known)),
    )


def _columns_of(
    field: Field, names: tuple[str, ...], mapped: Mapping[Field, str], ignored: tuple[str, ...]
) -> Iterator[str]:
    if field in mapped:
        yield mapped[field]
    elif field in PARTS_OF_A_PROMPT and field != "system":
        usual = FORMATS.get(mapped.get("prompt", "prompt"), {}).get(field, ())
        taken = (*ignored, *mapped.values())
        yield from (column for column in usual if column in names and column not in taken)
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
