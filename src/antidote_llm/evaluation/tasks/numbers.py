"""Tasks whose answer is a number at the end of a worked solution."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from antidote_llm.evaluation.tasks.labels import own_part

_MOST_DIGITS = 60
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_CURRENCY = r"[$\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}]"
# A minus sign belongs to the number unless it is a subtraction: 10-5 holds 10 and 5.
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]])[-+](?={_CURRENCY}?\s?[.0-9]))?{_CURRENCY}?\s?(?P<inner>(?<![\w$)\]])[-+])?"
    rf"(?<![^\W0-9_])(?:(?P<whole>{_DIGITS})\s+(?=[0-9]+/[1-9]))?"
    rf"(?P<number>(?<![0-9.]){_DIGITS}(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
    rf"(?:/(?P<below>[1-9][0-9]*)(?![0-9/]))?"
)
_GROUP_SPACE = re.compile(r"(?<=[0-9])[\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}](?=[0-9]{3}(?![0-9]))")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_HASHES = re.compile(r"####(?P<stated>[^\n]*)")
_BOXED = re.compile(r"\\boxed\s*\{(?P<stated>[^{}]*)\}")
_ANNOUNCED = re.compile(r"\banswer\b[^.\n]{0,40}?(?:\bis\b|:|=)(?P<stated>[^\n]*)", re.IGNORECASE)
_CLAUSE_ENDS = re.compile(r"[.!?](?=\s|$)")


def is_correct(answer: str, gold: str) -> bool:
    """Return whether an answer's final number is exactly the gold answer's."""
    wanted = final_number(gold)
    return wanted is not None and final_number(answer) == wanted


def final_number(answer: str) -> Fraction | None:
    """Return the number that an answer comes to, None where it names none.

    What counts, in this order: what follows the first ``####``; the last ``\\boxed{}``; what follows the last "answer
    is" or "answer:", and there what follows a last equals sign; the last number of the answer. Thousands separators,
    currency, units, a percent sign, trailing zeros and a trailing full stop do not count; 3/4 is a fraction.
    """
    text = _plain(own_part(answer))
    hashes, boxed = _HASHES.finditer(text), [*_BOXED.finditer(text)][::-1]
    for found in (*hashes, *boxed, *[*_ANNOUNCED.finditer(text)][::-1]):
        value = _stated(found["stated"])
        if value is not None:
            return value
    values = _numbers(text)
    return values[-1] if values else None


def _stated(statement: str) -> Fraction | None:
    """Return the first number of a statement, or the first after its last equals sign."""
    clause = next((part for part in _CLAUSE_ENDS.split(statement) if _NUMBER.search(part)), "")
    values = _numbers(clause.rpartition("=")[2]) or _numbers(clause)
    return values[0] if values else None


def _numbers(text: str) -> list[Fraction]:
    return [value for found in _NUMBER.finditer(text) if (value := _value(found)) is not None]


def _value(found: re.Match[str]) -> Fraction | None:
    # Very long rows of digits are loops, not numbers.
    if len(found.group()) > _MOST_DIGITS:
        return None
    size = Fraction(_unseparated(found["number"])) / int(found["below"] or 1)
    size += int(_unseparated(found["whole"] or "0"))
    return -size if "-" in (found["sign"], found["inner"]) else size


def _unseparated(digits: str) -> str:
    return digits.replace(",", "")


def _plain(text: str) -> str:
    """Return text with one minus sign, one fraction bar and no typesetting."""
    text = _GROUP_SPACE.sub("", text).replace("{,}", ",").replace("\\$", "$")
    text = "".join(
        f" {character}" if unicodedata.decomposition(character).startswith("<fraction>") else character
        for character in text
    )
    text = unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/").replace("\N{MINUS SIGN}", "-")
    return _FRACTION.sub(r"\1/\2", text)
