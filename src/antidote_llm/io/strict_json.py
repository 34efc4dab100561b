"""JSON read strictly, with one kind of error, and written so that UTF-8 can hold it, whatever names are in it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from antidote_llm.errors import UserError, first_line

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


_MOST_LEVELS = 100
_LARGEST = 1 << 63
_MOST_DIGITS = 20


class TwiceError(ValueError):
    """An object has a field twice."""


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
        value = json.loads(text, parse_constant=refuse_constant, parse_int=_integer, parse_float=finite)
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
        fix: What the user can do about a bad one.

    Raises:
        UserError: It cannot be read, or as :func:`parse_json`.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}: {fix}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}: {fix}") from error


def loose_json(path: Path) -> Any:
    """Return the value of a JSON file that is checked elsewhere; None if it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (ValueError, RecursionError):
        return None


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object, as ``object_pairs_hook`` of :mod:`json`.

    Raises:
        TwiceError: One is given twice. Names it.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise TwiceError(f"two fields of an object are named '{twice}'")
    return found


def require_shallow(value: Any) -> None:
    """Refuse brackets so deep that what goes through them later fails.

    Raises:
        ValueError: They are.
    """
    for _ in _levels(value):
        pass


def refuse_constant(name: str) -> NoReturn:
    """Refuse what Python reads and JSON does not have, as ``parse_constant`` of :mod:`json`.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not a number of JSON")


def finite(text: str) -> float:
    """Return a number, as ``parse_float`` of :mod:`json`.

    Raises:
        ValueError: It is not finite.
    """
    if not math.isfinite(value := float(text)):
        raise ValueError("a number too large")
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _MOST_DIGITS else _LARGEST
    if not -_LARGEST <= value < _LARGEST:
        raise ValueError("a number of more than 64 bits")
    return value


def _require_plain(value: Any) -> None:
    """Refuse brackets too deep, and text that no file can hold."""
    for level in _levels(value):
        if not all(is_utf8(each) for each in level if isinstance(each, str)):
            raise ValueError("half a surrogate pair in a text")


def _levels(value: Any) -> Iterator[list[Any]]:
    """Yield a value, what is inside it, what is inside that, and so on."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        yield level
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError("brackets too deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else ()


Model = TypeVar("Model", bound=BaseModel)


def parse_model(kind: type[Model], data: str | bytes) -> Model:
    """Return the record that a JSON text describes.

    Raises:
        ValueError: As :func:`parse_json`, or it describes another kind of thing. Says why in one line.
    """
    parse_json(data)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong with a value, and where, without the value."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*filter(None, [".".join(map(str, problem["loc"]))]), first_line(ValueError(problem["msg"]))])
