"""Reads JSON that anybody may have written: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from antidote_llm.errors import UserError

_MOST_LEVELS = 100
_LARGEST = 1 << 63
_MOST_DIGITS = 20


def parse_json(data: str | bytes) -> Any:
    """Return the value of a JSON text.

    Args:
        data: The text, or its bytes in UTF-8.

    Raises:
        ValueError: It is not JSON in UTF-8, or has brackets too deep, a number that is not finite or has more than 64
            bits, or half a surrogate pair. Says which in one line.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("brackets too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    _require_plain(value)
    return value


def read_json(path: Path, fix: str = "fetch the file again, or remove it") -> Any:
    """Return the value of a JSON file.

    Args:
        path: The file.
        fix: What the user is told to do about a bad one.

    Raises:
        UserError: It cannot be read, or as :func:`parse_json`.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}: {fix}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}: {fix}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _MOST_DIGITS else _LARGEST
    if not -_LARGEST <= value < _LARGEST:
        raise ValueError("a number of more than 64 bits")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number too large")
    return value


def _require_plain(value: Any) -> None:
    """Refuse brackets so deep that what walks through them later fails, and text that no file can hold."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError("brackets too deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, str) and not value.isascii():
        _require_encodable(value)
    return value if isinstance(value, list) else ()


def _require_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair in a text") from error
