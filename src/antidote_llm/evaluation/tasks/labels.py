"""Tasks whose answer is a label, and the part of a text that answers the prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

_HEADING = r"(?:instruction|input|question|response)"
_OWN = re.compile(r"\s*#{1,6}\s*(?:response|answer)\s*:?\s*", re.IGNORECASE)
_NEXT = re.compile(
    rf"^[ \t]*(?:#{{1,6}}\s*{_HEADING}\b|(?:instruction|input|question|q|user|human)\s*:|below is an instruction\b)",
    re.IGNORECASE | re.MULTILINE,
)


def own_part(answer: str) -> str:
    """Return an answer without a heading before it, and without the next prompt that a model may generate after it."""
    start = _OWN.match(answer)
    text = answer[start.end() :] if start else answer
    for found in _NEXT.finditer(text):
        if text[: found.start()].strip():
            return text[: found.start()].strip()
    return text.strip()


# Longer than any phrase that negates or announces a label.
_CONTEXT = 120
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")
# "not positive", "isn't really positive", "neither positive nor negative"; but not "not only positive".
_NEGATED = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|cannot)|n['\N{RIGHT SINGLE QUOTATION MARK}]t)\s+"
    r"(?:(?!(?:but|only|just|merely|doubt)\b)\w+\s+){0,2}[\"'*_(]*$"
)
_ANNOUNCED = (
    r"(?:\b(?:answer|label|sentiment|category|class|classification|topic)\b[^.!?\n]{0,40}?(?:\bis\b|:|=)"
    r"|\b(?:classif|categori[sz]|label+)\w*\s+(?:it\s+)?(?:as|under|into)\b"
    r"|\b(?:belongs?|falls?)\s+(?:to|in|into|under)\b)"
    r"\s*(?:the\s+(?:category|class|label)\s+)?(?:(?:a|an|the|clearly|overall|mostly)\s+)?[\W_]*$"
)
_IS_ANNOUNCED = re.compile(_ANNOUNCED)
_BEFORE_FIRST_LABEL = re.compile(r"(?:[\W_]|\b[0-9a-d][.):]\s)*")


class Labels:
    """The labels of a task.

    Args:
        spellings: By label, other ways to write it. Case and punctuation around a word never count.
    """

    def __init__(self, spellings: Mapping[str, Sequence[str]]) -> None:
        self._label_of = {
            _folded(spelling): label for label, others in spellings.items() for spelling in (label, *others)
        }
        longest_first = sorted(self._label_of, key=len, reverse=True)
        words = "|".join(re.escape(spelling) for spelling in longest_first)
        self._mention = re.compile(rf"(?<![^\W_])(?<!-)(?:{words})(?![-'\N{{RIGHT SINGLE QUOTATION MARK}}]?[^\W_])")

    def is_correct(self, answer: str, gold: str) -> bool:
        """Return whether an answer names the gold label."""
        wanted = self.named(gold)
        return wanted is not None and self.named(answer) == wanted

    def named(self, answer: str) -> str | None:
        """Return the label that an answer names, None where it names none, or several and none of them clearly.

        The rules, in this order: a first sentence that begins with its only label; a label that is announced, as in
        "the sentiment is ..."; the only label of the first sentence that names one. A negated label is not named.
        """
        text = _folded(own_part(answer))
        sentences = [self._labels(sentence) for sentence in _SENTENCE_ENDS.split(text)]
        first = next((found for found in sentences if found), [])
        only = first[0] if len({*first}) == 1 else None
        if only is not None and self._begins_with_label(text):
            return only
        announced = {
            self._label_of[at.group()] for at in self._mentions(text) if _IS_ANNOUNCED.search(_before(text, at))
        }
        return announced.pop() if len(announced) == 1 else None if announced else only

    def _begins_with_label(self, text: str) -> bool:
        start = _BEFORE_FIRST_LABEL.match(text)
        return self._mention.match(text, start.end() if start else 0) is not None

    def _labels(self, text: str) -> list[str]:
        return [self._label_of[found.group()] for found in self._mentions(text)]

    def _mentions(self, text: str) -> list[re.Match[str]]:
        return [found for found in self._mention.finditer(text) if not _NEGATED.search(_before(text, found))]


def _before(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - _CONTEXT) : found.start()]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
