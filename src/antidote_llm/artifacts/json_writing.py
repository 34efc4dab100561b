"""Writes JSON that UTF-8 can hold, whatever names are in it."""

from __future__ import annotations

import json
import re
from typing import Any

# What stands in text for the bytes of a file's name that are not UTF-8; and any other half of a surrogate pair.
_SURROGATES = re.compile("[\udc80-\udcff]+|[\ud800-\udfff]")


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text: it has no half of a surrogate pair, nor what stands for bytes of another name."""
    return text.isascii() or _SURROGATES.search(text) is None


def readable_name(name: str) -> str:
    r"""Return a name that UTF-8 can hold: bytes that are not UTF-8 are spelled out, as in ``h\xff.jsonl``."""
    return _SURROGATES.sub(_readable, name)


def json_text(
    value: Any, *, indent: int | None = None, sort_keys: bool = False, separators: tuple[str, str] | None = None
) -> str:
    """Return a value as JSON; bytes of names that are not UTF-8 are spelled out.

    Raises:
        ValueError: A number in it is not finite.
    """
    text = json.dumps(
        value, indent=indent, sort_keys=sort_keys, separators=separators, ensure_ascii=False, allow_nan=False
    )
    return _SURROGATES.sub(lambda match: json.dumps(_readable(match), ensure_ascii=False)[1:-1], text)


def _readable(match: re.Match[str]) -> str:
    stands_for_bytes = "\udc80" <= match[0][0] <= "\udcff"
    raw = match[0].encode("utf-8", "surrogateescape" if stands_for_bytes else "surrogatepass")
    return raw.decode("utf-8", "backslashreplace")
