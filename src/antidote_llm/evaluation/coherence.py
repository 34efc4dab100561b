"""A check of coherence without a model: it finds answers that cannot be sentences.

It is a lower bound: fluent nonsense passes. What it calls incoherent is empty, wordless, torn, or stuck in a loop. Of
19,918 proper answers to Alpaca's instructions it takes 17 for such, mainly regular expressions and patterns of notes.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np

# An answer cut in the middle of a character ends in one of these without being torn.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_TORN_SHARE = 0.02
_LEAST_WORD_SHARE = 0.4
_MOST_LOOP_CHARACTERS = 200
_LEAST_REPEATS = 4
_LEAST_LOOPED = 12
_LEAST_WORDS_FOR_VARIETY = 40
_LEAST_VARIETY = 0.12


def incoherence(answer: str) -> str | None:
    """Return why an answer cannot be a sentence of any language, or None where nothing was found.

    In order: empty; no letters or digits; more than 2 % replacement or control characters; less than 40 % letters,
    digits and spaces; half of it or more is one piece of up to 200 characters, four times or more in a row; fewer than
    12 % of its words, where there are 40 or more, are different.
    """
    text = " ".join(answer.rstrip(REPLACEMENT).split())
    if not text:
        return "empty"
    if not any(character.isalnum() for character in text):
        return "no letters or digits"
    if sum(map(_is_torn, text)) > _MOST_TORN_SHARE * len(text):
        return "torn characters"
    if sum(map(_is_of_words, text)) < _LEAST_WORD_SHARE * len(text):
        return "mostly symbols"
    looped = _longest_loop(text)
    if looped >= _LEAST_LOOPED and 2 * looped >= len(text):
        return "a loop"
    words = re.findall(r"\w+", text.casefold())
    if len(words) >= _LEAST_WORDS_FOR_VARIETY and len(set(words)) < _LEAST_VARIETY * len(words):
        return "the same few words"
    return None


def _is_torn(character: str) -> bool:
    return character == REPLACEMENT or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")


def _is_of_words(character: str) -> bool:
    # Marks are the vowels and accents of many scripts.
    return character == " " or unicodedata.category(character)[0] in "LMN"


def _longest_loop(text: str) -> int:
    """Return how many characters the longest stretch of repeats covers."""
    codes_T = np.frombuffer(text.casefold().encode("utf-32-le"), dtype=np.uint32)
    longest = 0
    for period in range(1, min(_MOST_LOOP_CHARACTERS, len(codes_T) // _LEAST_REPEATS) + 1):
        differs_at = np.flatnonzero(codes_T[period:] != codes_T[:-period])
        borders = np.concatenate(([-1], differs_at, [len(codes_T) - period]))
        looped = int(np.diff(borders).max()) - 1 + period
        if looped >= _LEAST_REPEATS * period:
            longest = max(longest, looped)
    return longest
