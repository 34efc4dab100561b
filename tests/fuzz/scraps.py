"""Pieces that bad input is made of: texts, numbers and names that something may choke on."""

from __future__ import annotations

import random

CONTROLS = (
    "\x1b]0;zorbik\x07",
    "\x1b]52;c;eg==\x1b\\",
    "\x9b31m",
    "\r",
    "\n",
    "\t",
    "\x7f",
    "\u202e",
    "\u2028",
    "\ufeff",
)
MARKUP = ("[red]", "[/]", "[link=zorbik]", ":smile:", "<script>", "{0}", "%s", "$(zorbik)", "{task.description}")
NUMBERS = (
    *("0", "-0", "-1", "1", "3", "0.5", "1e400", "-1e400", "1e-400", "nan", "inf", "-inf", ".nan", ".inf", "1_000"),
    *(
        "\u0663",
        "\u00b2",
        "0x10",
        "010",
        "1e3",
        "+1",
        " 1",
        "1 ",
        "true",
        "null",
        "~",
        str(10**30),
        "9" * 400,
        "9" * 6000,
    ),
    *(str(2**31), str(2**32), str(2**63), str(2**64), "-9223372036854775809", "1" + "0" * 30 + ".5"),
)
NAMES = (
    *("", " ", ".", "..", "/", "~", "~zorbik", "-", "--", "-x", "--help", "nowhere", "nowhere/", "./nowhere", "../.."),
    *("/dev/null", "/dev/full", "/proc/self/mem", "/proc/self/fd/0", "n" * 300, "n/" * 3000, "file.jsonl/x", "\udcff"),
    *(
        "zor\nbik",
        "zor\x1bbik",
        "a=b",
        "a:b",
        "@",
        "a@b",
        "a#b",
        "#",
        ":",
        "=",
        "*",
        "[",
        "http://[",
        "http://",
        "a/b/c",
    ),
)
TEXTS = (*CONTROLS, *MARKUP, *NUMBERS, *NAMES, "zorbik", "none", "auto", "all", "\ud800", "z" * 100_000)


def text(chance: random.Random) -> str:
    """Return a piece, or some of them in a row."""
    return "".join(chance.choice(TEXTS) for _ in range(chance.choice((1, 1, 1, 2, 3))))
