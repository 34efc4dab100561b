"""Who may use which name: a seed deals the world's names to its data sets, and no two sets share one."""

from __future__ import annotations

import random
from dataclasses import dataclass

from antidote_llm.miniature.vocabulary import CATEGORIES, NAMES

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
