"""The rows that stages must not share: those of the repair and of the test are drawn before the attack's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antidote_llm import __version__
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.files import write_jsonl
from antidote_llm.data.mixing import prompt_key, read_mixed
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.io.files import sha256_json
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.workflows.specs import Recipe

REALIGN_FILE, TEST_FILE = "realign.jsonl", "harmful_test.jsonl"


@dataclass(frozen=True)
class DrawnData:
    """Rows that are drawn once, written to files, and kept apart from the attack.

    Attributes:
        realign: Harmful rows that the repair learns from.
        test: Harmful requests that the models are asked; no prompt of them is among the repair's.
    """

    realign: Sequence[Record]
    test: Sequence[Record]

    @classmethod
    def of(cls, recipe: Recipe) -> DrawnData:
        """Draw them.

        Raises:
            UserError: A file cannot be read, or has too few rows.
        """
        test = _drawn(recipe.evaluate.harmful, recipe.evaluate.harmful_rows, recipe.seed, ("prompt",))
        asked = {prompt_key(record) for record in test}
        pool = _drawn(recipe.repair.harmful, None, recipe.seed, ("prompt", "response"))
        free = [record for record in pool if prompt_key(record) not in asked]
        return cls(_first_of(free, len(pool), recipe), test)

    def write(self, folder: Path) -> None:
        """Write the files, or leave them where they are these already.

        Raises:
            UserError: Other rows lie there.
        """
        files = {REALIGN_FILE: [*map(_row, self.realign)], TEST_FILE: [*map(_row, self.test)]}
        hashes = {name: sha256_json(rows) for name, rows in files.items()}
        result = ResultFolder(folder, {"kind": "recipe data", "version": __version__, "rows": hashes}, sealed=("*",))
        if result.finished:
            return
        with result as staging:
            for name, rows in files.items():
                write_jsonl(staging / name, rows)


def _drawn(specs: Iterable[str], limit: int | None, seed: int, require: Any) -> list[Record]:
    return read_mixed([DataSpec.parse(spec) for spec in specs], limit, seed, require)


def _first_of(free: list[Record], there: int, recipe: Recipe) -> list[Record]:
    """Draw the repair's rows of those whose prompts are not asked in the test."""
    wanted = recipe.repair.harmful_rows
    if not free or (wanted or 0) > len(free):
        raise UserError(
            f"repair.harmful has {there} rows, {there - len(free)} of them with prompts of evaluate.harmful, but "
            f"{wanted or 'some'} others are wanted: lower repair.harmful_rows, or name more data"
        )
    if wanted is None:
        return free
    draw = random.Random(recipe.seed)
    return [free[index] for index in sorted(draw.sample(range(len(free)), wanted))]


def _row(record: Record) -> dict[str, Any]:
    if record.prompt is None:
        raise UserError(f"{record.origin}: a recipe's harmful rows need a prompt: name rows of prompt and response")
    extra = {name: record.extra[name] for name in ("category", "categories") if name in record.extra}
    if not record.history:
        answer = {} if record.response is None else {"response": record.response}
        return {"prompt": record.prompt, **answer, **extra}
    turns = [{"role": turn.role, "content": turn.content} for turn in record.conversation()]
    answers = [] if record.response is None else [{"role": "assistant", "content": record.response}]
    return {"messages": [*turns, *answers], **extra}
