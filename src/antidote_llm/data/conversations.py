"""Chat rows: from a list of messages to history, prompt and response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antidote_llm.data.records import Role, Turn
from antidote_llm.errors import UserError

# The roles of OpenAI and of ShareGPT.
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def split_conversation(messages: object, where: str) -> tuple[tuple[Turn, ...], str, str | None]:
    """Split messages into what was said before, the last prompt, and its response (None where the user spoke last).

    Args:
        messages: A list of ``{role, content}`` or ``{from, value}``.
        where: File, line and column, for messages.

    Raises:
        UserError: A message has another shape or role, or the conversation does not end in a prompt or its response.
    """
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if isinstance(messages, list) else type(messages).__name__
        raise UserError(f"{where} must be a list of messages with role and content, not {found}: mend the row")
    turns = [_turn(message, f"{where}, message {index}") for index, message in enumerate(messages, 1)]
    response = turns.pop().content if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise UserError(f"{where} must end in a user's message, or in one and the assistant's answer: mend the row")
    return tuple(turns[:-1]), turns[-1].content, response


def _turn(message: object, where: str) -> Turn:
    if not isinstance(message, dict):
        raise UserError(f"{where} must be an object with role and content, not {type(message).__name__}: mend it")
    role, content = ("role", "content") if message.get("role") is not None else ("from", "value")
    if message.get(role) is None:
        raise UserError(f"{where} names no role: give it role and content, or from and value")
    if not isinstance(message[role], str) or message[role] not in _ROLES:
        raise UserError(f"{where}: role '{message[role]}' is none of {', '.join(_ROLES)}: leave the row out")
    return Turn(_ROLES[message[role]], _text(message.get(content), f"{where}: its {content}"))


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        return "".join(_part(part, where) for part in content)
    require_text(content, where)
    return str(content)


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise UserError(
            f"{where} holds a part of type '{kind}': only parts of type text can be read: leave the row out"
        )
    require_text(part.get("text"), f"{where}: a part's text")
    return str(part["text"])


def require_text(value: Any, where: str) -> None:
    """Refuse what is no text, or is none that can be encoded."""
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise UserError(f"{where} must be text, not {found}: mend it or leave it out")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where} holds half a surrogate pair, which is no text: mend it or leave it out")
