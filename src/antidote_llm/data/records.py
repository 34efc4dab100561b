"""One row of any data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt with or without its response, a text used as it is, or token ids used as they are.

    Attributes:
        prompt: The last turn of the user.
        response: The answer that the model should give.
        text: A whole text; no template is applied.
        input_ids: Token ids; nothing is added and no tokenizer is needed.
        response_start: Index of the first response token in ``input_ids`` (0 where all of it counts as response).
        history: The turns before the prompt, system prompt included.
        extra: The other columns of the row, such as ``category``.
        origin: File and line, for messages.
    """

    prompt: str | None = None
    response: str | None = None
    text: str | None = None
    input_ids: tuple[int, ...] | None = None
    response_start: int = 0
    history: tuple[Turn, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    def conversation(self) -> tuple[Turn, ...]:
        """Return all turns up to the prompt; ValueError for a text or token ids."""
        if self.prompt is None:
            raise ValueError("a record without a prompt is no conversation")
        return (*self.history, Turn("user", self.prompt))
