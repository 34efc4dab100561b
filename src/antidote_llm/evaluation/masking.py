"""Hides a key in what a server says, whole, cut in parts, spaced out or encoded."""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

MASK = "[key]"
# So many letters and digits in the key's order are no accident; words may be, up to the second number.
_PART = 8
_LONGEST_WORD = 11
_SHORTEST_HIDDEN = 6
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})|\\+u([0-9a-fA-F]{4})|\\+x([0-9a-fA-F]{2})|&#\w{1,7};|\\+[nrtbf]")


@dataclass(frozen=True, slots=True)
class _Needle:
    """One form of the key: its letters and digits, and as many of them as give it away."""

    text: str
    part: int
    has_words: bool

    @property
    def folded(self) -> str:
        return self.text.lower()


class Mask:
    """Hides one key.

    A part counts from eight letters and digits on. Letter case, white space, punctuation and escapes between and in
    them do not matter; neither does base64 or hexadecimal. Eight to eleven letters that may be an English word by
    chance (``required`` in a key ``sk-no-key-required``) stay where they are no whole key.

    Args:
        key: The key; nothing is hidden where there is none.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key or ""
        self._needles = _needles(self._key)

    def __call__(self, text: str, *, strict: bool = False) -> str:
        """Return a text without the key.

        Args:
            text: What a server said.
            strict: For error messages: hide keys of any length too, and parts that may be words.
        """
        if not self._key:
            return text
        if strict or len(self._key) >= _SHORTEST_HIDDEN:
            text = text.replace(self._key, MASK)
        letters, starts, ends = _letters(text)
        hidden = bytearray(len(letters))
        for needle in self._needles:
            for start, end in _runs(letters, needle):
                if strict or not _is_word(needle, letters[start:end]):
                    hidden[start:end] = b"\1" * (end - start)
        return _replaced(text, hidden, starts, ends) if any(hidden) else text


def _needles(key: str) -> list[_Needle]:
    plain = _alphanumeric(key)
    found = [_Needle(plain, min(_PART, len(plain)), True)] if len(plain) >= _SHORTEST_HIDDEN else []
    if len(key) < _PART:
        return found
    found.append(_Needle(key.encode().hex(), 2 * _PART, False))
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + key.encode()).decode().rstrip("=")
        # The first letters hold bits of what comes before the key, the last ones of what comes behind it.
        inner = _alphanumeric(coded[(0, 2, 3)[shift] : -1])
        found.append(_Needle(inner, min(_PART + 4, len(inner)), False))
    return [needle for needle in found if needle.text]


def _alphanumeric(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _letters(text: str) -> tuple[str, list[int], list[int]]:
    """Return the letters and digits of a text, lower case and unescaped, with where each starts and ends there."""
    found: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for said, start, end in _unescaped(text):
        for character in said if said.isascii() else unicodedata.normalize("NFKC", said):
            if character.isalnum():
                found.append(character.lower()[:1])
                starts.append(start)
                ends.append(end)
    return "".join(found), starts, ends


def _unescaped(text: str) -> Iterator[tuple[str, int, int]]:
    at = 0
    for match in _ESCAPE.finditer(text):
        yield from ((text[place], place, place + 1) for place in range(at, match.start()))
        yield _meant(match), match.start(), match.end()
        at = match.end()
    yield from ((text[place], place, place + 1) for place in range(at, len(text)))


def _meant(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code is not None:
        return chr(int(code, 16))
    return html.unescape(match[0]) if match[0].startswith("&") else " "


def _runs(letters: str, needle: _Needle) -> Iterator[tuple[int, int]]:
    """Return where parts of the needle stand, each as long as it goes on."""
    folded, part = needle.folded, needle.part
    parts = {folded[at : at + part] for at in range(len(folded) - part + 1)}
    at, last = 0, len(letters) - part
    while at <= last:
        if letters[at : at + part] not in parts:
            at += 1
            continue
        end = at + part
        while end < len(letters) and letters[at : end + 1] in folded:
            end += 1
        yield at, end
        at = end - part + 1


def _is_word(needle: _Needle, run: str) -> bool:
    """Whether a part may stand in a text by chance: letters of one case, and not too many."""
    at = needle.folded.find(run)
    said = needle.text[at : at + len(run)]
    one_case = said.isalpha() and (said.islower() or said.isupper() or said.istitle())
    return needle.has_words and one_case and len(run) < len(needle.text) and len(run) <= _LONGEST_WORD


def _replaced(text: str, hidden: bytearray, starts: list[int], ends: list[int]) -> str:
    found: list[str] = []
    at = place = 0
    while place < len(hidden):
        if not hidden[place]:
            place += 1
            continue
        first = place
        while place < len(hidden) and hidden[place]:
            place += 1
        found += [text[at : starts[first]], MASK]
        at = ends[place - 1]
    return "".join([*found, text[at:]])
