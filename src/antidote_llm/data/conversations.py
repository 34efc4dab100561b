"""Conversations: from lists of messages to history, prompt and response."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from antidote_llm.data.columns import is_filled, require_only_text
from antidote_llm.data.records import Role, Turn
from antidote_llm.data.thoughts import CLOSING, OPENING
from antidote_llm.errors import UserError
from antidote_llm.io.strict_json import is_utf8

# The roles of OpenAI, ShareGPT and similar formats.
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython", "environment")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Fields that say whether a model is trained on an answer.
_TRAINED_ON = ("weight", "train", "training", "loss")


def split_conversation(
    messages: object, where: str, answer: object = None, ignored: Container[str] = ()
) -> tuple[tuple[Turn, ...], str, str | None]:
    """Split messages into earlier turns, the last prompt, and its response (None where the user's turn is the last).

    Args:
        messages: A list of ``{role, content}`` or ``{from, value}``.
        where: File, line and column, for errors.
        answer: The content of an answer column: a text, or messages that may repeat the earlier ones.
        ignored: Fields of messages that are left out on purpose.

    Raises:
        UserError: A message has another shape or role, or the conversation does not end in a prompt or its response.
    """
    turns = _turns(messages, where, ignored)
    if isinstance(answer, list):
        further = _turns(answer, f"{where}, its answer", ignored)
        turns += further[len(turns) :] if further[: len(turns)] == turns else further
    response = turns.pop().content if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise UserError(f"{where} must end in a user's message, or in one and the assistant's answer: correct the row")
    return tuple(turns[:-1]), turns[-1].content, response


def earlier_turns(pairs: object, where: str, ignored: Container[str] = ()) -> tuple[Turn, ...]:
    """Read the turns before a prompt: messages, or pairs of a prompt and its answer as LLaMA-Factory writes them.

    Raises:
        UserError: It is neither, or does not end in an answer.
    """
    if isinstance(pairs, list) and pairs and all(isinstance(pair, list | tuple) for pair in pairs):
        if any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{where} must hold pairs of a prompt and its answer: correct the row")
        texts = [(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
        messages: object = [{"role": role, "content": text} for role, text in texts]
    else:
        messages = pairs
    turns = _turns(messages, where, ignored)
    if turns[-1].role != "assistant":
        raise UserError(f"{where} must end in an answer, before the prompt of the row: correct the row")
    return tuple(turns)


def _turns(messages: object, where: str, ignored: Container[str]) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if isinstance(messages, list) else type(messages).__name__
        raise UserError(f"{where} must be a list of messages with role and content, not {found}: correct the row")
    turns = [_turn(message, f"{where}, message {index}", ignored) for index, message in enumerate(messages, 1)]
    if turns[-1].role == "assistant":
        _require_trained_on(messages[-1], f"{where}, message {len(messages)}", ignored)
    return turns


def _turn(message: object, where: str, ignored: Container[str]) -> Turn:
    if not isinstance(message, dict):
        raise UserError(f"{where} must be an object with role and content, not {type(message).__name__}: correct it")
    role, content = ("role", "content") if message.get("role") is not None else ("from", "value")
    if message.get(role) is None:
        raise UserError(f"{where} names no role: give it role and content, or from and value")
    name = message[role].lower() if isinstance(message[role], str) else ""
    if name not in _ROLES:
        tools = ": what tools say cannot be read" if name in _TOOL_ROLES else ""
        raise UserError(f"{where}: role '{message[role]}' is none of {', '.join(_ROLES)}{tools}: leave the row out")
    require_only_text(message, where, ignored)
    text = _content(message, content, where, ignored)
    return Turn(_ROLES[name], _with_thought(message, text, where, ignored))


def _content(message: Mapping[str, Any], content: str, where: str, ignored: Container[str]) -> str:
    if (refusal := message.get("refusal")) is None or "refusal" in ignored or not is_filled(refusal):
        return _text(message.get(content), f"{where}: its {content}")
    if is_filled(message.get(content)):
        raise UserError(f"{where} has both {content} and a refusal: keep one, or pass ignore=refusal")
    # OpenAI's endpoints give a refusal in place of content.
    return _text(refusal, f"{where}: its refusal")


def _with_thought(message: Mapping[str, Any], text: str, where: str, ignored: Container[str]) -> str:
    """Put a thought from a separate field before the reply, in the tags that models use."""
    found = [name for name in _THOUGHTS if name not in ignored and is_filled(message.get(name))]
    if not found or CLOSING in text:
        return text
    thought = _text(message[found[0]], f"{where}: its {found[0]}")
    return f"{OPENING}\n{thought.strip()}\n{CLOSING}\n\n{text}"


def _require_trained_on(message: Mapping[str, Any], where: str, ignored: Container[str]) -> None:
    for name in _TRAINED_ON:
        value = message.get(name)
        if value is not None and name not in ignored and (value is False or value == 0):
            raise UserError(
                f"{where}: {name} {value} says that no model learns from this answer: leave the row out, or pass "
                f"ignore={name}"
            )
    for name in ("train_detail", "training_detail"):
        parts = message.get(name)
        if name not in ignored and isinstance(parts, list) and any(_is_untrained(part) for part in parts):
            raise UserError(
                f"{where}: {name} says that no model learns from a part of this answer: leave the row out, or pass "
                f"ignore={name}"
            )


def _is_untrained(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("train") is False


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        return "".join(_part(part, where) for part in content)
    require_text(content, where)
    return str(content)


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise UserError(
            f"{where} holds a part of type '{kind}': only parts of type text can be read: leave the row out"
        )
    require_text(part.get("text"), f"{where}: a part's text")
    return str(part["text"])


def require_text(value: Any, where: str) -> None:
    """Refuse a value that is not text, or that cannot be encoded as UTF-8."""
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise UserError(f"{where} must be text, not {found}: correct it or leave it out")
    if not is_utf8(value):
        raise UserError(f"{where} holds half a surrogate pair, which is no text: correct it or leave it out")


def text_of(turns: Sequence[Turn]) -> str:
    """Return the contents of all turns."""
    return "\n".join(turn.content for turn in turns)
