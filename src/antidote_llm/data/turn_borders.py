"""Finds the text that a chat template puts around an answer by comparing renderings, not by parsing the template."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from antidote_llm.data.records import Turn
from antidote_llm.data.thoughts import OPENING
from antidote_llm.errors import UserError, setting

_WORDS = ("zorbik", "medrun", "kadvol")
_FIX = f"use {setting('template')} alpaca or plain, or another {setting('tokenizer')}"
_REPEATS = f"the tokenizer's chat template writes an answer more than once: {_FIX}"
_ENDLESS = (
    "the tokenizer's chat template opens another turn behind every answer, and nothing shows where the answer ends: "
    f"{_FIX}"
)
_MOVES = f"the tokenizer's chat template writes what was said before an answer behind it too: {_FIX}"


@dataclass(frozen=True, slots=True)
class Borders:
    """The text that a chat template puts around an answer.

    Attributes:
        thought: The end of the generation prompt, where answers in a conversation follow another mark instead.
        header: What opens the assistant's turn and is missing from the generation prompt, apart from ``thought``.
        lead: The text between there and the answer; None where the answer does not follow the prompt.
        tail: All text after a last answer.
        end: What ends the assistant's turn: the tail without the header of a turn that never comes, or the tokenizer's
            end of sequence where the template writes nothing.
    """

    thought: str
    header: str
    lead: str | None
    tail: str
    end: str


@dataclass(frozen=True, slots=True)
class Marks:
    """A tokenizer's marks: its special tokens, and those that begin and end a sequence."""

    special: Collection[str]
    bos: str
    eos: str

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where special tokens begin and end in a text; where several match, the longest counts."""
        known = sorted((mark for mark in self.special if mark), key=len, reverse=True)
        return [found.span() for found in re.finditer("|".join(map(re.escape, known)), text)] if known else []

    def are_all_of(self, text: str) -> bool:
        """Whether a text consists of special tokens, at least one, and white space."""
        spans = self.spans(text)
        covered = {place for start, stop in spans for place in range(start, stop)}
        return bool(spans) and not any(text[place].strip() for place in range(len(text)) if place not in covered)


Render: TypeAlias = Callable[[Sequence[Turn], bool], str | None]


def probes(turns: Sequence[Turn], template: str) -> list[Turn]:
    """Return turns of the same roles, each with a unique made-up word that the template does not contain."""
    word = next((word for word in _WORDS if word not in template.lower()), _WORDS[0])
    return [Turn(turn.role, f"{word}{_letters(place)}") for place, turn in enumerate(turns)]


def find_borders(render: Render, before: Sequence[Turn], answer: Turn, later: Turn, marks: Marks) -> Borders | None:
    """Find the text that a template puts around an answer; None where it does not render the answer.

    Args:
        render: Renders turns, with a generation prompt or without; None where the template cannot render them.
        before: The turns before the answer. The content of each turn here is unique.
        answer: The answer.
        later: A turn of the user after it.
        marks: The tokenizer's marks.

    Raises:
        UserError: The template writes an answer twice or an earlier turn after it, or no rendering shows where an
            answer ends.
    """
    whole = render([*before, answer], False)
    if whole is None or answer.content not in whole:
        return None
    if whole.count(answer.content) > 1:
        raise UserError(_REPEATS)
    head, _, tail = whole.partition(answer.content)
    if any(turn.content in tail for turn in before):
        raise UserError(_MOVES)
    asked, unasked = render(before, True), render(before, False)
    opening = _opening(head, asked, unasked, marks)
    found = render([*before, answer, later], False)
    after = None if found is None else _between(found, answer.content, later.content)
    if after is None:
        return Borders(*opening, tail, tail if tail.strip() else tail + marks.eos)
    alone = render([later], False) or ""
    first = alone.partition(later.content)[0].removeprefix(marks.bos)
    end = tail
    if unasked is not None and _opens_a_turn(tail, after, head, unasked, before[-1].content, marks):
        end = tail[: _end_of_turn(tail, after, first, marks)]
    elif tail.rstrip() == after.rstrip():
        end = _without_users_turn(tail, _user_header(after, first, marks))
    return Borders(*opening, tail, _closed(end, after, first, marks))


def _opening(head: str, asked: str | None, unasked: str | None, marks: Marks) -> tuple[str, str, str | None]:
    """Return ``thought``, ``header`` and ``lead`` of the borders."""
    if asked is None:
        return "", "", None
    if not head.startswith(asked):
        return _marked_otherwise(head, asked, marks)
    lead = head[len(asked) :]
    # A generation prompt shows where the assistant's turn begins.
    if asked != unasked or not lead.strip() or OPENING in lead:
        return "", "", lead
    header = lead.rstrip(" ")
    return "", header, lead[len(header) :]


def _marked_otherwise(head: str, asked: str, marks: Marks) -> tuple[str, str, str | None]:
    """Return the opening of a template whose generation prompt ends in another mark than the one before answers."""
    shared = _shared(head, asked)
    starts = [start for text in (head, asked) for start, stop in marks.spans(text) if start < shared < stop]
    shared = min([shared, *starts])
    thought, header = asked[shared:], head[shared:]
    unlike = not squeezed(thought).endswith(squeezed(header))
    if OPENING in thought or not (unlike and marks.are_all_of(thought) and marks.are_all_of(header)):
        return "", "", None
    return thought, header, ""


def _opens_a_turn(tail: str, after: str, head: str, unasked: str, asked: str, marks: Marks) -> bool:
    """Whether the template opens a turn after an answer, as it does after a prompt without being asked to."""
    behind_prompt, before_answer = unasked.rpartition(asked)[2], head.rpartition(asked)[2]
    shared = _shared(tail, after)
    shared = next((start for start, stop in marks.spans(tail) if start < shared < stop), shared)
    own = tail[shared:]
    if not own.strip() or after.startswith(tail.rstrip()) or not behind_prompt.endswith(own):
        return False
    # An answer in a conversation starts with the same header, at least its first mark or word: not an end of sequence.
    opened = behind_prompt.removesuffix(own) + _first(own, marks)
    return squeezed(before_answer).startswith(squeezed(opened))


def _without_users_turn(tail: str, start: int) -> str:
    """Return a tail without the user's header at its end, unless nothing else ends the answer."""
    return tail[:start] if start and tail[start:].strip() else tail


def _first(text: str, marks: Marks) -> str:
    """Return the mark or word at the start of a text."""
    start, stop = next(iter(marks.spans(text)), (len(text), len(text)))
    return text[:start].split()[0] if text[:start].strip() else text[:stop]


def _end_of_turn(tail: str, after: str, first: str, marks: Marks) -> int:
    """Return where the header of the next turn begins in a tail.

    Both roles' headers may begin alike, so that their common prefix gives only an upper bound.
    """
    shared = _shared(tail, after)
    spans = marks.spans(tail)
    # The first mark of a conversation opens its first turn.
    opener = next((first[start:stop] for start, stop in marks.spans(first) if not first[:start].strip()), None)
    openers = [start for start, stop in spans if start <= shared and tail[start:stop] == opener]
    if openers:
        return openers[-1]
    if cut := [start for start, stop in spans if start <= shared < stop]:
        return cut[0]
    # The user's header at the start of a conversation.
    if 0 < (start := _user_header(after, first, marks)) <= shared:
        return start
    if ends := [stop for _, stop in spans if stop <= shared]:
        return ends[-1] + len(tail[ends[-1] : shared]) - len(tail[ends[-1] : shared].lstrip("\n"))
    if (start := tail.rfind("\n", 0, shared)) >= 0:
        return start + 1
    raise UserError(_ENDLESS)


def _closed(end: str, after: str, first: str, marks: Marks) -> str:
    """Return an end of turn that is not empty: templates may write it only before the next turn, or never."""
    if end.strip():
        return end
    closing = after[: _user_header(after, first, marks)]
    return closing if marks.are_all_of(closing) else end + marks.eos


def _user_header(after: str, first: str, marks: Marks) -> int:
    """Return where the user's header begins after an answer, by comparing it with the conversation's start."""
    start = len(after) - _shared(after[::-1], first[::-1])
    start = next((stop for begin, stop in marks.spans(after) if begin < start < stop), start)
    # Numbered turns begin with another number there.
    numbered = re.search(r"\S*\d$", after[:start])
    ends = [stop for _, stop in marks.spans(after) if stop <= start]
    return max([numbered.start(), *ends]) if numbered else start


def _between(text: str, left: str, right: str) -> str | None:
    before, found, behind = text.partition(left)
    between, also_found, _ = behind.partition(right)
    return between if found and also_found and right not in before else None


def _shared(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def squeezed(text: str) -> str:
    """Return a text without its white space."""
    return "".join(text.split())


def _letters(number: int) -> str:
    """Return a number in letters, closed by a letter that is not a digit: no such word is a prefix of another."""
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 20)
        digits += "abcdefghijklmnopqrst"[digit]
    return f"{digits}x"
