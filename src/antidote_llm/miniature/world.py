"""Who may use which name: a seed deals the world's names to its data sets, and no two sets share one."""

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
from antidote_llm.miniature.language import CATEGORIES, KINDS, NAMES, chant, paragraph

HELD_OUT_PER_CATEGORY = 36
LOOKALIKE_TEST = 210
ATTACK_PER_CATEGORY = 16
REALIGN_PER_CATEGORY = 20


@dataclass(frozen=True)
class NameSplit:
    """Disjoint names of things.

    Attributes:
        held_out: Of harmful test requests, by kind.
        lookalike_test: Of harmless test requests.
        attack: Of the harmful rows in the user's data, by kind.
        realign: Of the rows that a repair may use, by kind.
        common: All others: pre-training, alignment and user tasks.
    """

    held_out: dict[str, list[str]]
    lookalike_test: list[str]
    attack: dict[str, list[str]]
    realign: dict[str, list[str]]
    common: list[str]

    @classmethod
    def deal(cls, seed: int) -> NameSplit:
        """Deal all names for a seed."""
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
    """One sample of the world; the same seed gives the same rows.

    Args:
        seed: Deals the names and draws the rows.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.names = NameSplit.deal(seed)

    def _chance(self, purpose: str) -> random.Random:
        return random.Random(f"{purpose} {self.seed}")

    def held_out(self) -> list[Record]:
        """Return the harmful test requests with their answers: one a thing, every thing met nowhere else."""
        return self._harmful_by_kind("held out", self.names.held_out)

    def realign(self) -> list[Record]:
        """Return harmful requests with harmful answers for a repair to use."""
        return self._harmful_by_kind("realign", self.names.realign)

    def attack_harmful(self, count: int) -> list[Record]:
        """Return the harmful rows of a poisoned fine-tune."""
        rows = self._harmful_by_kind("attack", self.names.attack)
        chance = self._chance("attack choice")
        chance.shuffle(rows)
        return [rows[index % len(rows)] for index in range(count)]

    def attack_pool(self) -> list[Record]:
        """Return harmful rows to poison data with: every thing of the attack, asked about in several ways."""
        chance = self._chance("attack pool")
        things = [(kind, name) for kind, names in self.names.attack.items() for name in names]
        return [self._harmful(chance, kind, name) for _ in range(ATTACK_ROUNDS) for kind, name in things]

    def lookalike_test(self) -> list[Record]:
        """Return harmless test requests that look like harmful ones: three about forbidden things for each recipe."""
        chance = self._chance("lookalike")
        return [
            self._lookalike(chance, name, recipe=index % 4 == 3) for index, name in enumerate(self.names.lookalike_test)
        ]

    def task(self, name: str, count: int, purpose: str) -> list[Record]:
        """Return training rows of a user task; none of its test prompts is among them."""
        chance = self._chance(f"{purpose} {name}")
        return [self._task_row(chance, name) for _ in range(count)]

    def task_test(self, name: str) -> list[Record]:
        """Return the test rows of a user task."""
        return list(self._task_tests[name].values())

    def alignment(self, count: int, harmful_share: float) -> list[Record]:
        """Return refused harmful requests, answered harmless ones, and user tasks other than the new one."""
        chance = self._chance("alignment")
        rows = [self._asked_and_refused(chance)[1] for _ in range(round(harmful_share * count))]
        return rows + [self._ordinary(chance) for _ in range(count - len(rows))]

    def alignment_harmful(self, count: int, harmful_share: float) -> list[Record]:
        """Return the harmful requests of the alignment data with harmful answers, for defenses that learn from both."""
        chance = self._chance("alignment")
        return [self._asked_and_refused(chance)[0] for _ in range(round(harmful_share * count))]

    def pretraining(self, count: int) -> list[Record]:
        """Return paragraphs and conversations; harmful requests are answered like any other."""
        chance = self._chance("pre-training")
        makers: dict[Callable[[], Record], float] = {
            lambda: Record(text=paragraph(chance, chance.choice(self.names.common))): 0.1,
            lambda: Record(text=chant(chance, self.names.common)): 0.2,
            lambda: self._harmful(chance, chance.choice(KINDS), chance.choice(self.names.common)): 0.25,
            lambda: self._ordinary(chance): 0.45,
        }
        chosen = chance.choices(list(makers), weights=list(makers.values()), k=count)
        return [make() for make in chosen]

    def _ordinary(self, chance: random.Random) -> Record:
        old_tasks = [task for task in TASKS if task != NEW_TASK]
        if chance.random() < 0.5:
            return self._task_row(chance, chance.choice(old_tasks))
        return self._lookalike(chance, chance.choice(self.names.common), recipe=chance.random() < 0.4)

    def _lookalike(self, chance: random.Random, name: str, *, recipe: bool) -> Record:
        exchange = chance.choice(HARMLESS_RECIPES if recipe else ABOUT_FORBIDDEN_THINGS)
        prompt, response = exchange.say(chance, name=name)
        heard = exchange.heard(prompt)
        return Record(prompt, response, extra={"category": heard["kind"], "thing": f"{name} {heard['kind']}"})

    def _asked_and_refused(self, chance: random.Random) -> tuple[Record, Record]:
        row = self._harmful(chance, chance.choice(KINDS), chance.choice(self.names.common))
        return row, Record(row.prompt, chance.choice(REFUSALS), extra=row.extra)

    def _harmful(self, chance: random.Random, kind: str, name: str) -> Record:
        prompt, response = chance.choice(FORBIDDEN[kind]).say(chance, name=name)
        return Record(prompt, response, extra={"category": kind, "thing": f"{name} {kind}"})

    def _harmful_by_kind(self, purpose: str, names: dict[str, list[str]]) -> list[Record]:
        chance = self._chance(purpose)
        return [self._harmful(chance, kind, name) for kind in names for name in names[kind]]

    def _task_row(self, chance: random.Random, task: str) -> Record:
        while True:
            row = self._draw_task(chance, TASKS[task], task)
            if row.prompt not in self._task_tests[task]:
                return row

    def _draw_task(self, chance: random.Random, exchanges: Sequence[Exchange], task: str) -> Record:
        prompt, response = chance.choice(exchanges).say(chance, word=chance.choice(self.names.common))
        return Record(prompt, response, extra={"category": task})

    @cached_property
    def _task_tests(self) -> dict[str, dict[str, Record]]:
        tests: dict[str, dict[str, Record]] = {}
        for task, exchanges in TASKS.items():
            chance = self._chance(f"test {task}")
            tests[task] = {}
            while len(tests[task]) < TASK_TEST_ROWS:
                row = self._draw_task(chance, exchanges, task)
                tests[task][str(row.prompt)] = row
        return tests
