"""How answers to a task are scored: by matching the gold answer, or by the rule of a known task."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.choices import MatchMode

IsCorrect: TypeAlias = Callable[[str, str], bool]


class TaskRecord(BaseModel):
    """How one task was asked and scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(description="When an answer counts as right.")
    max_new_tokens: int = Field(ge=1, description="Most tokens of an answer.")


class Scoring(Protocol):
    """Scores the answers to one task."""

    @property
    def metric(self) -> str:
        """When an answer counts as right, in a few words; evaluations with different metrics are not compared."""

    @property
    def new_tokens(self) -> int | None:
        """Most tokens of an answer; None for the length of all other answers."""

    def takes(self, gold: str) -> bool:
        """Whether answers can be compared with this gold answer."""
        ...

    def correct(self, prompts: Sequence[str], answers: Sequence[str], golds: Sequence[str]) -> list[bool]:
        """Return whether each answer is right."""
        ...


@dataclass(frozen=True, slots=True)
class ByAnswer:
    """Compares each answer with its gold answer. A gold answer that is not right against itself is an error."""

    metric: str
    is_correct: IsCorrect
    new_tokens: int | None = None

    def takes(self, gold: str) -> bool:
        """Whether a gold answer is right against itself."""
        return self.is_correct(gold, gold)

    def correct(self, prompts: Sequence[str], answers: Sequence[str], golds: Sequence[str]) -> list[bool]:
        """Compare each answer with its gold one."""
        del prompts
        return [self.is_correct(answer, gold) for answer, gold in zip(answers, golds, strict=True)]


_QUOTES = "\"'`*_#()\\[\\]{}<>\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}" + (
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
)
# A sign or a decimal point belongs to the number that follows it.
_BEFORE = re.compile(rf"^(?:[\s{_QUOTES}]|[.,;:!?](?!\d))+")
_AFTER = re.compile(rf"[\s{_QUOTES}.,;:!?]+$")
_WORD_GOES_ON = re.compile(r"\w|[.,'-]\w")


def normalised(answer: str) -> str:
    """Return an answer in lower case and single spaces, without the punctuation and quotes around it."""
    text = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return _AFTER.sub("", _BEFORE.sub("", text))


def is_correct(answer: str, gold: str, mode: MatchMode) -> bool:
    """Whether an answer is the gold one; with ``prefix``, whether it begins with it and with no longer word.

    Raises:
        ValueError: The gold answer is empty once normalised: any answer would begin with it.
    """
    wanted, found = normalised(gold), normalised(answer)
    if not wanted:
        raise ValueError("the gold answer is empty")
    if mode == "exact":
        return found == wanted
    return found.startswith(wanted) and _WORD_GOES_ON.match(found, len(wanted)) is None


def by_matching(mode: MatchMode) -> ByAnswer:
    """Return the scoring of a task without a metric of its own."""
    return ByAnswer(
        metric=f"{mode} match",
        is_correct=lambda answer, gold: bool(normalised(gold)) and is_correct(answer, gold, mode),
    )
