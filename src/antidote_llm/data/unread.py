"""Columns and fields of messages that the readers of other formats use and this one does not: refused or named."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from antidote_llm.data.spec import quoted
from antidote_llm.errors import UserError

_TOOLS = ("tools", "functions", "function_call", "tool_calls", "tool_call_id")
_MEDIA = (
    *(f"{kind}{ending}" for kind in ("image", "video", "audio") for ending in ("", "s", "_url", "_path", "_file")),
    "imagefilename",
    "pixel_values",
)
# A row without these is another row.
_REFUSED_BESIDE_A_PROMPT = frozenset((*_TOOLS, *_MEDIA, "documents", "chat_template", "chat_template_kwargs"))
_REFUSED_BESIDE_A_TEXT = frozenset(_MEDIA)
_REFUSED_IN_A_MESSAGE = frozenset((*_TOOLS, *_MEDIA, "documents"))
# These may be a part of the prompt, or of the answer, or nothing of the kind: only the user knows.
_NAMED = frozenset(
    (
        # What a model is told before anything else.
        "system_prompt",
        "system_message",
        "sys_prompt",
        "systemprompt",
        "system",
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
        # Of the answer.
        "tool_choice",
        "reasoning",
        "reasoning_content",
        "thinking",
        "thought",
        "thoughts",
    )
)
_NAMED_IN_A_MESSAGE = frozenset(("name", "prefix", "tool_choice"))
_NOTHING = ("", "[]", "{}", "null", "none", "nan")


def is_filled(value: Any) -> bool:
    """Say whether a cell holds anything; lists and objects that hold nothing do not, however deep."""
    if value is None or value is False or is_nan(value):
        return False
    if isinstance(value, str):
        return value.strip().lower() not in _NOTHING
    if isinstance(value, Mapping):
        return any(map(is_filled, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_filled, value))
    return True


def is_nan(value: Any) -> bool:
    """Say whether a cell is what pandas writes for a missing one."""
    return isinstance(value, float) and math.isnan(value)


def require_no_more(cells: Mapping[str, Any], origin: str, used: Container[str], *, prompt: bool) -> None:
    """Refuse a row whose meaning depends on a column that is not read.

    Args:
        cells: Values by column.
        origin: File and line, for messages.
        used: Columns that are read, or ignored on purpose.
        prompt: Whether the row is rendered from a prompt; a text is used as it is.

    Raises:
        UserError: Names the first such column.
    """
    refused = _REFUSED_BESIDE_A_PROMPT if prompt else _REFUSED_BESIDE_A_TEXT
    for name, value in cells.items():
        if _plain(name) in refused and name not in used and is_filled(value):
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
        if _plain(name) in _REFUSED_IN_A_MESSAGE and name not in ignored and is_filled(value):
            raise UserError(
                f"{where}: its '{name}' cannot be read: leave the row out, or pass ignore={quoted(name)} to read the "
                "message without"
            )


def unread_columns(cells: Mapping[str, Any], used: Container[str], said: str) -> Iterator[str]:
    """Return the columns that may be a part of the prompt or its answer, and whose text stands in neither."""
    for name, value in cells.items():
        if _plain(name) in _NAMED and name not in used and is_filled(value) and not _is_in(value, said):
            yield name


def unread_in_messages(messages: object, ignored: Container[str]) -> Iterator[str]:
    """Return the fields of messages that may count and are not read, each once."""
    if isinstance(messages, list):
        yield from dict.fromkeys(
            name
            for message in messages
            if isinstance(message, Mapping)
            for name, value in message.items()
            if name in _NAMED_IN_A_MESSAGE and name not in ignored and is_filled(value)
        )


def _is_in(value: Any, said: str) -> bool:
    return all(text.strip() in said for text in _texts(value))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    return []


def _plain(name: object) -> str:
    return re.sub("[ -]", "_", str(name)).lower()
