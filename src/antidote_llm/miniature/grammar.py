"""Frames: sentences with slots, which can be both spoken and understood."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"\w+|[^\w\s]")

Slots = Mapping[str, Sequence[str]]


def words(text: str) -> list[str]:
    """Split a text into lower-case words and punctuation marks."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Frame:
    """A sentence such as ``the {name} is {colour}.``; a slot that stands twice holds the same word twice.

    Attributes:
        text: The sentence, with slots in braces.
        slots: The words that may stand in each slot.
    """

    text: str
    slots: Slots

    def say(self, chance: random.Random, **given: str) -> str:
        """Fill the slots: the ones given with their words, the others by chance."""
        chosen = {
            slot: given[slot] if slot in given else chance.choice(self.slots[slot])
            for slot in dict.fromkeys(_SLOT.findall(self.text))
        }
        return self.text.format(**chosen)

    def hear(self, text: str) -> dict[str, str] | None:
        """Return the word in each slot, or None where the text is not this sentence from its first word to its last."""
        heard: dict[str, str] = {}
        spoken = words(text)
        if len(spoken) != len(self._parts):
            return None
        for word, (slot, literal) in zip(spoken, self._parts, strict=True):
            if slot is None:
                if word != literal:
                    return None
            elif word not in self._allowed[slot] or heard.setdefault(slot, word) != word:
                return None
        return heard

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Every word that the sentence can hold."""
        literal = {word for slot, word in self._parts if slot is None}
        return frozenset(literal).union(*self._allowed.values())

    @cached_property
    def _parts(self) -> list[tuple[str | None, str]]:
        parts: list[tuple[str | None, str]] = []
        for index, piece in enumerate(_SLOT.split(self.text)):
            parts += [(piece, "")] if index % 2 else [(None, word) for word in words(piece)]
        return parts

    @cached_property
    def _allowed(self) -> dict[str, frozenset[str]]:
        return {slot: frozenset(self.slots[slot]) for slot, _ in self._parts if slot is not None}
