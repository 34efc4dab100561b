"""Makes text of any origin safe to look at: it cannot control a terminal, a page or the reading direction."""

from __future__ import annotations

import re

# C0 and C1 controls except tab and newline, bidirectional overrides and isolates, invisible characters, joiners of
# words and tags, lone surrogates, non-characters. Joiners inside words and emoji (U+200C, U+200D) are writing.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    + "".join(chr(plane + 0xFFFE) + chr(plane + 0xFFFF) for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)
_BREAK = re.compile(r"[\t\n]")
_SPACE = re.compile(r"[ \t\n]+")
_LINE_LIMIT, _WORD_LIMIT = 480, 240
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def visible(text: str) -> str:
    """Return the text with every steering or invisible character spelled out, as in ``[U+202E]``."""
    return _STEERING.sub(_spelled, text.replace("\r\n", "\n"))


def visible_line(text: str) -> str:
    """Return the text on one line: as :func:`visible`, tabs and newlines spelled out too."""
    return _BREAK.sub(_spelled, visible(text))


def error_line(text: str) -> str:
    """Return a message on one line of at most a few hundred characters that is safe to look at.

    Long words lose their middle first, then the line does: what it begins with names the thing, what it ends with the
    fix.
    """
    # What is left out is not looked at: a message may have any length.
    line = _SPACE.sub(" ", visible(cut_middle(text, 100 * _LINE_LIMIT))).strip(" ")
    if len(line) > _LINE_LIMIT:
        line = " ".join(cut_middle(word, _WORD_LIMIT) for word in line.split(" "))
    return cut_middle(line, _LINE_LIMIT)


def cut_middle(text: str, limit: int) -> str:
    """Return the text without its middle where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}{_ELLIPSIS}{text[len(text) - (limit - head - 1) :]}"


def escape_json(text: str) -> str:
    """Return a JSON text as another that means the same and holds no steering character."""
    return _STEERING.sub(lambda match: _json_escape(match[0]), text)


def _spelled(match: re.Match[str]) -> str:
    return f"[U+{ord(match[0]):04X}]"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
