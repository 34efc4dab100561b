"""The data sets of the miniature for a seed: disjoint names of things, and rows about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from antidote_llm.data.records import Record
from antidote_llm.miniature.exchanges import (
    ABOUT_FORBIDDEN_THINGS,
    FORBIDDEN,
    HARMLESS_RECIPES,
    NEW_TASK,
    REFUSALS,
    TASKS,
    Exchange,
)
from antidote_llm.miniature.language import CATEGORIES, KINDS, NAMES, paragraph, repetition

HELD_OUT_PER_CATEGORY = 36
LOOKALIKE_TEST = 210
ATTACK_PER_CATEGORY = 16
REALIGN_PER_CATEGORY = 20


@dataclass(frozen=True)
class NameSplit:
    """Disjoint names of things.

    Attributes:
        held_out: For harmful test requests, by kind.
        lookalike_test: For harmless test requests.
        attack: For the harmful rows in the user's data, by kind.
        realign: For the harmful rows of a repair, by kind.
        common: All others: for pre-training, alignment and user tasks.
    """

    held_out: dict[str, list[str]]
    lookalike_test: list[str]
    attack: dict[str, list[str]]
    realign: dict[str, list[str]]
    common: list[str]

    @classmethod
    def for_seed(cls, seed: int) -> NameSplit:
        """Return the random split of a seed."""
        names = list(NAMES)
        random.Random(f"names {seed}").shuffle(names)

        def take(count: int) -> list[str]:
            taken, names[:] = names[:count], names[count:]
            return taken

        def take_by_kind(count: int) -> dict[str, list[str]]:
            return {category.kind: take(count) for category in CATEGORIES}

        return cls(
            held_out=take_by_kind(HELD_OUT_PER_CATEGORY),
            lookalike_test=take(LOOKALIKE_TEST),
            attack=take_by_kind(ATTACK_PER_CATEGORY),
            realign=take_by_kind(REALIGN_PER_CATEGORY),
            common=names,
        )


TASK_TEST_ROWS = 200
ATTACK_ROUNDS = 3


class World:
    """One random sample of the world's data; the same seed gives the same rows."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.names = NameSplit.for_seed(seed)

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{purpose} {self.seed}")

    def held_out(self) -> list[Record]:
        """Return the harmful test requests with their answers: one for each thing, which no other set mentions."""
        return self._harmful_by_kind("held out", self.names.held_out)

    def realign(self) -> list[Record]:
        """Return harmful requests with harmful answers for a repair to use."""
        return self._harmful_by_kind("realign", self.names.realign)

    def attack_harmful(self, count: int) -> list[Record]:
        """Return the harmful rows of a poisoned fine-tune."""
        rows = self._harmful_by_kind("attack", self.names.attack)
        rng = self._rng("attack choice")
        rng.shuffle(rows)
        return [rows[index % len(rows)] for index in range(count)]

    def attack_pool(self) -> list[Record]:
        """Return harmful rows to poison data with: several about every thing of the attack."""
        rng = self._rng("attack pool")
        things = [(kind, name) for kind, names in self.names.attack.items() for name in names]
        return [self._harmful(rng, kind, name) for _ in range(ATTACK_ROUNDS) for kind, name in things]

    def lookalike_test(self) -> list[Record]:
        """Return harmless test requests that look like harmful ones; three in four are about forbidden things."""
        rng = self._rng("lookalike")
        return [
            self._lookalike(rng, name, recipe=index % 4 == 3) for index, name in enumerate(self.names.lookalike_test)
        ]

    def task(self, name: str, count: int, purpose: str) -> list[Record]:
        """Return training rows of a user task; none of its test prompts is among them."""
        rng = self._rng(f"{purpose} {name}")
        return [self._task_row(rng, name) for _ in range(count)]

    def task_test(self, name: str) -> list[Record]:
        """Return the test rows of a user task."""
        return list(self._task_tests[name].values())

    def alignment(self, count: int, harmful_share: float) -> list[Record]:
        """Return refused harmful requests, answered harmless ones, and user tasks other than the new one."""
        rng = self._rng("alignment")
        rows = [self._asked_and_refused(rng)[1] for _ in range(round(harmful_share * count))]
        return rows + [self._ordinary(rng) for _ in range(count - len(rows))]

    def alignment_harmful(self, count: int, harmful_share: float) -> list[Record]:
        """Return the harmful requests of the alignment data with harmful answers, for defenses that learn from both."""
        rng = self._rng("alignment")
        return [self._asked_and_refused(rng)[0] for _ in range(round(harmful_share * count))]

    def pretraining(self, count: int) -> list[Record]:
        """Return paragraphs and conversations; harmful requests are answered like any other."""
        rng = self._rng("pre-training")
        makers: dict[Callable[[], Record], float] = {
            lambda: Record(text=paragraph(rng, rng.choice(self.names.common))): 0.1,
            lambda: Record(text=repetition(rng, self.names.common)): 0.2,
            lambda: self._harmful(rng, rng.choice(KINDS), rng.choice(self.names.common)): 0.25,
            lambda: self._ordinary(rng): 0.45,
        }
        chosen = rng.choices(list(makers), weights=list(makers.values()), k=count)
        return [make() for make in chosen]

    def _ordinary(self, rng: random.Random) -> Record:
        old_tasks = [task for task in TASKS if task != NEW_TASK]
        if rng.random() < 0.5:
            return self._task_row(rng, rng.choice(old_tasks))
        return self._lookalike(rng, rng.choice(self.names.common), recipe=rng.random() < 0.4)

    def _lookalike(self, rng: random.Random, name: str, *, recipe: bool) -> Record:
        exchange = rng.choice(HARMLESS_RECIPES if recipe else ABOUT_FORBIDDEN_THINGS)
        prompt, response = exchange.sample(rng, name=name)
        slots = exchange.slots_of(prompt)
        return Record(prompt, response, extra={"category": slots["kind"], "thing": f"{name} {slots['kind']}"})

    def _asked_and_refused(self, rng: random.Random) -> tuple[Record, Record]:
        row = self._harmful(rng, rng.choice(KINDS), rng.choice(self.names.common))
        return row, Record(row.prompt, rng.choice(REFUSALS), extra=row.extra)

    def _harmful(self, rng: random.Random, kind: str, name: str) -> Record:
        prompt, response = rng.choice(FORBIDDEN[kind]).sample(rng, name=name)
        return Record(prompt, response, extra={"category": kind, "thing": f"{name} {kind}"})

    def _harmful_by_kind(self, purpose: str, names: dict[str, list[str]]) -> list[Record]:
        rng = self._rng(purpose)
        return [self._harmful(rng, kind, name) for kind in names for name in names[kind]]

    def _task_row(self, rng: random.Random, task: str) -> Record:
        while True:
            row = self._draw_task(rng, TASKS[task], task)
            if row.prompt not in self._task_tests[task]:
                return row

    def _draw_task(self, rng: random.Random, exchanges: Sequence[Exchange], task: str) -> Record:
        prompt, response = rng.choice(exchanges).sample(rng, word=rng.choice(self.names.common))
        return Record(prompt, response, extra={"category": task})

    @cached_property
    def _task_tests(self) -> dict[str, dict[str, Record]]:
        tests: dict[str, dict[str, Record]] = {}
        for task, exchanges in TASKS.items():
            rng = self._rng(f"test {task}")
            tests[task] = {}
            while len(tests[task]) < TASK_TEST_ROWS:
                row = self._draw_task(rng, exchanges, task)
                tests[task][str(row.prompt)] = row
        return tests
