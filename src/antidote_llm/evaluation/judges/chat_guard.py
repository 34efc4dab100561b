"""Runs a guard: shows it each request with its answer, and reads what it says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import AutoModelForCausalLM

from antidote_llm.data.chat import ChatTemplate
from antidote_llm.data.records import Turn
from antidote_llm.errors import UserError, first_line
from antidote_llm.evaluation.generation import generate
from antidote_llm.evaluation.judges.folders import JudgeFolder, require_architecture
from antidote_llm.evaluation.judges.guards import HARMBENCH_CLASSIFIER, LLAMA_GUARD, SHIELDGEMMA, WILDGUARD, Guard
from antidote_llm.evaluation.judges.likelihood import score_openings
from antidote_llm.evaluation.judges.reading import Reading
from antidote_llm.evaluation.judges.reading_judge import Keep, Pair, ReadingJudge

_BATCH_SIZE = 16
_ANY_PAIR = ("zorbik", "medrun")
# A cut answer may encode to a few tokens more than it was cut to.
_SPARE_TOKENS = 8


def llama_guard(where: str = LLAMA_GUARD.hub_id) -> ReadingJudge:
    """Make the judge from a folder or Hub id of a Llama Guard; raises as :func:`chat_guard`."""
    return chat_guard(LLAMA_GUARD, where)


def wildguard(where: str = WILDGUARD.hub_id) -> ReadingJudge:
    """Make the judge from a folder or Hub id of WildGuard; raises as :func:`chat_guard`."""
    return chat_guard(WILDGUARD, where)


def shieldgemma(where: str = SHIELDGEMMA.hub_id) -> ReadingJudge:
    """Make the judge from a folder or Hub id of a ShieldGemma; raises as :func:`chat_guard`."""
    return chat_guard(SHIELDGEMMA, where)


def harmbench_classifier(where: str = HARMBENCH_CLASSIFIER.hub_id) -> ReadingJudge:
    """Make the judge from a folder or Hub id of HarmBench's classifier; raises as :func:`chat_guard`."""
    return chat_guard(HARMBENCH_CLASSIFIER, where)


def chat_guard(guard: Guard, where: str) -> ReadingJudge:
    """Make a judge of a guard.

    Raises:
        UserError: The model is not there, is no causal language model, or its chat template does not show a guard the
            request, the answer and the guideline.
    """
    opened = JudgeFolder.open(guard.name, where)
    reader = ChatGuard(guard, opened)
    return ReadingJudge(opened.named, {**opened.identity, "version": guard.version}, reader.read)


class ChatGuard:
    """A guard with its model, which is loaded at its first answer.

    Args:
        guard: What it is shown, and how its words are read.
        opened: Its folder.
    """

    def __init__(self, guard: Guard, opened: JudgeFolder) -> None:
        require_architecture(opened, "ForCausalLM", "a causal language model")
        self._guard, self._opened = guard, opened
        if guard.guidelines and self._ids("Yes") == self._ids("No"):
            raise UserError(
                f"judge '{guard.name}': the tokenizer of {opened.reference} has no words for Yes and No: "
                "name a model of the kind that this judge is made for"
            )
        for _, guideline in guard.guidelines or (("", ""),):
            shown = self.shown(*_ANY_PAIR, guideline)
            for part in (*_ANY_PAIR, guideline):
                if part not in shown:
                    raise UserError(
                        f"judge '{guard.name}': the chat template of {opened.reference} leaves out "
                        f"{'the guideline' if part == guideline else 'the request or the answer'}: "
                        "name a model of the kind that this judge is made for"
                    )

    def shown(self, prompt: str, answer: str, guideline: str = "") -> str:
        """Return the text that the guard reads.

        Raises:
            UserError: It has no chat template, or the template cannot render a request with its answer.
        """
        if self._guard.text is not None:
            return self._guard.text.format(prompt=prompt, answer=answer)
        if not self._opened.tokenizer.chat_template:
            raise UserError(
                f"judge '{self._guard.name}': {self._opened.reference} has no chat template: fetch it again"
            )
        more = {"guideline": guideline} if guideline else {}
        try:
            return self._template.render([Turn("user", prompt), Turn("assistant", answer)], more=more)
        except TemplateError as error:
            raise UserError(
                f"judge '{self._guard.name}': the chat template of {self._opened.reference} cannot render a request "
                f"with its answer: {first_line(error)}"
            ) from error

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._opened.tokenizer, thinking=True)

    def read(self, pairs: Sequence[Pair], keep: Keep) -> None:
        """Read answers in batches, the longest first."""
        order = sorted(range(len(pairs)), key=lambda place: -sum(map(len, pairs[place])))
        for start in range(0, len(order), _BATCH_SIZE):
            places = order[start : start + _BATCH_SIZE]
            chosen = [pairs[place] for place in places]
            readings = self._scored(chosen) if self._guard.guidelines else self._said(chosen)
            for place, reading in zip(places, readings, strict=True):
                keep(place, reading)

    def _said(self, pairs: Sequence[Pair]) -> list[Reading | None]:
        tokenizer, ends = self._opened.tokenizer, self._ends()
        answers_ids = generate(
            self._model,
            [self._encoded(pair) for pair in pairs],
            max_new_tokens=self._guard.max_new_tokens,
            eos_ids=ends,
            pad_id=next(iter(ends), 0),
            batch_size=_BATCH_SIZE,
        )
        return [self._guard.parse(str(tokenizer.decode(ids, skip_special_tokens=True))) for ids in answers_ids]

    def _scored(self, pairs: Sequence[Pair]) -> list[Reading | None]:
        """Ask whether ``Yes`` is likelier than ``No``, for every guideline."""
        words = [self._ids(word) for word in ("Yes", "No")]
        flagged: list[list[str]] = [[] for _ in pairs]
        for name, guideline in self._guard.guidelines:
            values: dict[int, list[float]] = {}
            score_openings(self._model, [self._encoded(pair, guideline) for pair in pairs], words, values.__setitem__)
            for place, (yes, no) in values.items():
                if not math.isfinite(yes - no):
                    raise UserError(
                        f"judge '{self._guard.name}': {self._opened.reference} gives no finite numbers: fetch it again"
                    )
                if yes > no:
                    flagged[place].append(name)
        return [Reading(bool(names), tuple(names)) for names in flagged]

    def _encoded(self, pair: Pair, guideline: str = "") -> list[int]:
        """Return the tokens of what the guard reads; an answer that is too long for it loses its end."""
        prompt, answer = pair
        ids = self._ids(self.shown(prompt, answer, guideline))
        positions = getattr(self._opened.config.get_text_config(), "max_position_embeddings", None)
        over = len(ids) + self._guard.max_new_tokens - int(positions) if positions else 0
        if over <= 0:
            return ids
        answer_ids = self._ids(answer)
        if (left := len(answer_ids) - over - _SPARE_TOKENS) <= 0:
            raise UserError(
                f"judge '{self._guard.name}': a request of {len(prompt)} characters does not fit into its "
                f"{positions} positions: leave it out, or use another judge"
            )
        cut = str(self._opened.tokenizer.decode(answer_ids[:left]))
        return self._ids(self.shown(prompt, cut, guideline))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._opened.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _ends(self) -> tuple[int, ...]:
        found: set[int | None] = {self._opened.tokenizer.eos_token_id}
        for holder in (self._model.generation_config, self._model.config):
            value = getattr(holder, "eos_token_id", None)
            found.update(value if isinstance(value, Iterable) else [value])
        return tuple(sorted(token for token in found if token is not None))

    @cached_property
    def _model(self) -> Any:
        return self._opened.load(AutoModelForCausalLM)
