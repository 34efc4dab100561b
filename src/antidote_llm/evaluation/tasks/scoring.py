"""Who says which answers to a task are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.choices import MatchMode
from antidote_llm.evaluation.tasks.matching import is_correct, normalised

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
        """When an answer counts as right, in a few words; evaluations that differ in it are not compared."""

    @property
    def new_tokens(self) -> int | None:
        """Most tokens of an answer; None for the length of all other answers."""

    def takes(self, gold: str) -> bool:
        """Say whether a gold answer can be compared with."""
        ...

    def correct(self, prompts: Sequence[str], answers: Sequence[str], golds: Sequence[str]) -> list[bool]:
        """Say of each answer whether it is right."""
        ...


@dataclass(frozen=True, slots=True)
class ByAnswer:
    """Scores every answer by itself.

    Attributes:
        metric: When an answer counts as right.
        is_correct: Takes an answer and the gold one. A gold answer that is not right against itself is refused.
        new_tokens: Most tokens of an answer; None for the length of all other answers.
    """

    metric: str
    is_correct: IsCorrect
    new_tokens: int | None = None

    def takes(self, gold: str) -> bool:
        """Say whether a gold answer is right against itself."""
        return self.is_correct(gold, gold)

    def correct(self, prompts: Sequence[str], answers: Sequence[str], golds: Sequence[str]) -> list[bool]:
        """Compare each answer with its gold one."""
        del prompts
        return [self.is_correct(answer, gold) for answer, gold in zip(answers, golds, strict=True)]


def by_matching(mode: MatchMode) -> ByAnswer:
    """Return the scoring of a task that has no metric of its own."""
    return ByAnswer(
        metric=f"{mode} match",
        is_correct=lambda answer, gold: bool(normalised(gold)) and is_correct(answer, gold, mode),
    )
