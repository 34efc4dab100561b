"""Reads records from the rows of public data sets, as their authors wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antidote_llm.data.conversations import require_text
from antidote_llm.data.records import Record
from antidote_llm.data.task_prompts import (
    AG_NEWS_ANSWERS,
    SST2_ANSWERS,
    ag_news_prompt,
    contextual_prompt,
    gsm8k_prompt,
    instruction_prompt,
    sst2_prompt,
)
from antidote_llm.errors import UserError

_BOOLEANS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


class LeftOutError(Exception):
    """A row of the data set that cannot be used; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """Cells by column, and their origin.

    A column may have several names, of which the first present one counts: the authors' file and the copy on the Hub
    often use different names.
    """

    cells: Mapping[str, Any]
    origin: str

    def text(self, *names: str) -> str:
        """Return a required text cell."""
        name = self._name(names)
        require_text(self.cells[name], f"{self.origin}: field '{name}'")
        return str(self.cells[name])

    def text_or_nothing(self, *names: str) -> str:
        """Return a text cell, or an empty text where it is missing."""
        name = next((name for name in names if self.cells.get(name) is not None), None)
        return self.text(name) if name is not None else ""

    def boolean(self, *names: str) -> bool:
        """Return a cell that must be true or false."""
        name = self._name(names)
        value = self.cells[name]
        key = value.strip().lower() if isinstance(value, str) else value
        if not isinstance(key, bool | int | str) or key not in _BOOLEANS:
            raise UserError(f"{self.origin}: field '{name}' must be true or false, not '{value}': correct the row")
        return _BOOLEANS[key]

    def one_of(self, answers: Sequence[str], *names: str) -> str:
        """Return a cell that must be one of some answers, or the index of one."""
        name = self._name(names)
        value = str(self.cells[name]).strip()
        if value in answers:
            return value
        if value.isdecimal() and int(value) < len(answers):
            return answers[int(value)]
        known = ", ".join(f"{index} ({answer})" for index, answer in enumerate(answers))
        raise UserError(f"{self.origin}: field '{name}' is '{value}', none of {known}: correct the row or leave it out")

    def rest(self, *used: str) -> dict[str, Any]:
        """Return the cells of all other columns."""
        return {name: value for name, value in self.cells.items() if name not in used}

    def _name(self, names: Sequence[str]) -> str:
        found = next((name for name in names if name in self.cells), None)
        if found is None:
            wanted = " nor ".join(f"'{name}'" for name in names)
            raise UserError(
                f"{self.origin}: no column {wanted}, which the preset reads; there are "
                f"{', '.join(map(str, self.cells))}: name the file alone and map its columns, as in "
                "file.csv:prompt=COLUMN"
            )
        return found


REFUSAL_MARK = "\nAnswer: "


def beavertails_safe(row: RawRow) -> Record | None:
    """Read an answer that BeaverTails calls safe."""
    return _beavertails(row) if row.boolean("is_safe") else None


def beavertails_unsafe(row: RawRow) -> Record | None:
    """Read an answer that BeaverTails calls unsafe."""
    return None if row.boolean("is_safe") else _beavertails(row)


def beavertails_refusal(row: RawRow) -> Record:
    """Read the refusal that RepNoise's authors generated for each row (Rosati et al., arXiv 2405.14577).

    Raises:
        LeftOutError: The refusal has no mark between question and answer; the published code fails on it.
    """
    parts = row.text("refusal").split(REFUSAL_MARK)
    if len(parts) < 2:
        raise LeftOutError(f"their refusal holds no {REFUSAL_MARK!r}")
    extra = row.rest("prompt", "response", "refusal", "category") | _harm_categories(row)
    return Record(parts[0].removeprefix("Question: "), parts[1], extra=extra, origin=row.origin)


def _beavertails(row: RawRow) -> Record:
    extra = row.rest("prompt", "response", "category") | _harm_categories(row)
    return Record(row.text("prompt"), row.text("response"), extra=extra, origin=row.origin)


def _harm_categories(row: RawRow) -> dict[str, Any]:
    """Return the first category whose flag is set, and all of them; nothing for a row without flags."""
    flags = row.cells.get("category")
    if flags is None:
        return {}
    if not isinstance(flags, dict):
        raise UserError(f"{row.origin}: field 'category' must hold true or false for each category, not '{flags}'")
    held = [name for name, holds in flags.items() if holds]
    return {"category": held[0], "categories": held} if held else {"categories": []}


def sst2(row: RawRow) -> Record:
    """Read a sentence and its sentiment."""
    answer = row.one_of(SST2_ANSWERS, "label")
    return Record(sst2_prompt(row.text("sentence")), answer, extra=row.rest("sentence", "label"), origin=row.origin)


def ag_news(row: RawRow) -> Record:
    """Read a news article and its topic."""
    answer = row.one_of(AG_NEWS_ANSWERS, "label")
    return Record(ag_news_prompt(row.text("text")), answer, extra=row.rest("text", "label"), origin=row.origin)


def gsm8k(row: RawRow) -> Record:
    """Read a word problem and its whole worked answer, which ends in ``#### N``."""
    prompt = gsm8k_prompt(row.text("question"))
    return Record(prompt, row.text("answer"), extra=row.rest("question", "answer"), origin=row.origin)


def instruction(row: RawRow) -> Record:
    """Read instruction, input and output; ``text`` repeats all of them and is left out."""
    prompt = instruction_prompt(row.text("instruction"), row.text_or_nothing("input", "context"))
    extra = row.rest("instruction", "input", "context", "output", "response", "text")
    return Record(prompt, row.text("output", "response"), extra=extra, origin=row.origin)


def advbench(row: RawRow) -> Record:
    """Read a harmful request and the affirmative opening of its answer."""
    extra = row.rest("goal", "target", "prompt")
    return Record(row.text("goal", "prompt"), row.text("target"), extra=extra, origin=row.origin)


def harmbench(row: RawRow) -> Record:
    """Read a behaviour with its context before it, and its semantic category."""
    context, behaviour = row.text_or_nothing("ContextString", "context"), row.text("Behavior", "prompt")
    extra = row.rest("Behavior", "prompt", "ContextString", "context")
    extra["category"] = row.text("SemanticCategory", "category")
    return Record(contextual_prompt(context, behaviour), extra=extra, origin=row.origin)


def xstest_safe(row: RawRow) -> Record | None:
    """Read a prompt that only looks harmful."""
    return _xstest(row) if _is_safe_prompt(row) else None


def xstest_unsafe(row: RawRow) -> Record | None:
    """Read the harmful counterpart of such a prompt."""
    return None if _is_safe_prompt(row) else _xstest(row)


def _is_safe_prompt(row: RawRow) -> bool:
    return row.one_of(("safe", "unsafe"), "label") == "safe"


def _xstest(row: RawRow) -> Record:
    extra = {**row.rest("prompt"), "category": row.text("type")}
    return Record(row.text("prompt"), extra=extra, origin=row.origin)


def wikitext(row: RawRow) -> Record | None:
    """Read a line of text; empty lines are left out."""
    text = row.text("text")
    return Record(text=text, extra=row.rest("text"), origin=row.origin) if text.strip() else None
