"""An exchange: a question that the world can ask and the answers that fit it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from antidote_llm.miniature.grammar import Frame, Slots


def _nothing_more(_: Mapping[str, str]) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Exchange:
    """A question and its answer; a slot that both have holds the same word in both.

    Attributes:
        question: What is asked.
        answer: What fits as an answer, right or wrong.
        solution: From the question's words to the answer's words that make it right, where there is a right one.
    """

    question: Frame
    answer: Frame
    solution: Callable[[Mapping[str, str]], dict[str, str]] = _nothing_more

    @classmethod
    def of(
        cls,
        question: str,
        answer: str,
        slots: Slots,
        solution: Callable[[Mapping[str, str]], dict[str, str]] = _nothing_more,
    ) -> Exchange:
        """Make an exchange of two sentences over the same slots."""
        return cls(Frame(question, slots), Frame(answer, slots), solution)

    def say(self, chance: random.Random, **given: str) -> tuple[str, str]:
        """Return a question and a right answer."""
        prompt = self.question.say(chance, **given)
        heard = self.heard(prompt)
        return prompt, self.answer.say(chance, **{**heard, **self.solution(heard)})

    def heard(self, prompt: str) -> dict[str, str]:
        """Return the words in the slots of a prompt that this exchange asked."""
        heard = self.question.hear(prompt)
        if heard is None:
            raise ValueError(f"not this exchange's question: {prompt}")
        return heard

    def fits(self, prompt: str, answer: str) -> bool | None:
        """Whether an answer fits the prompt; None where the prompt is not this question."""
        asked = self.question.hear(prompt)
        if asked is None:
            return None
        answered = self.answer.hear(answer)
        return answered is not None and all(asked.get(slot, word) == word for slot, word in answered.items())
