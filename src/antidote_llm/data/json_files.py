"""Rows of JSON files: one object a line, one list, a list in an object, or objects one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from antidote_llm.data.text_files import lines, open_text, whole
from antidote_llm.errors import UserError
from antidote_llm.io.strict_json import TwiceError, each_once, require_shallow

Rows = Iterator[tuple[str, Mapping[str, Any]]]
# Names that data sets give the list of their rows inside an object.
_LISTS = ("data", "rows", "examples", "instances", "records", "items", "samples", "train", "test", "validation", "dev")
_FEW_BRACKETS = 50


class _CutError(Exception):
    """A value continues on the next line."""


def json_lines(path: Path) -> Rows:
    """Read one object a line; a file that starts with a list or a value over several lines is read as one document."""
    with open_text(path) as stream:
        first = True
        for number, line in lines(stream, path):
            if not line.strip():
                continue
            try:
                row = _parsed(line, f"{path}:{number}", maybe_cut=first)
            except _CutError:
                break
            if first and isinstance(row, list) and all(isinstance(item, dict) for item in row):
                break
            first = False
            yield _object(f"{path}:{number}", row)
        else:
            return
    yield from json_document(path)


def json_document(path: Path) -> Rows:
    """Read a list of objects, an object that holds one, or objects one after the other."""
    with open_text(path) as stream:
        text = whole(stream, path)
    values = _values(text, path)
    value = next(values, (1, None))
    following = next(values, None)
    if following is not None:
        for line, row in (value, following):
            yield _object(f"{path}:{line}", row)
        for line, row in values:
            yield _object(f"{path}:{line}", row)
        return
    for index, row in enumerate(_rows_of(value[1], path)):
        yield _object(f"{path}: row {index}", row)


def _rows_of(value: Any, path: Path) -> list[Any]:
    """Return the rows of a document that holds a single value."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a list of objects, found {_kind(value)}: write one object a line as .jsonl")
    inside = [name for name in _LISTS if isinstance(value.get(name), list)]
    if len(inside) > 1:
        raise UserError(f"{path}: an object with the lists {', '.join(inside)}: put the one that is meant into a file")
    if inside:
        rows: list[Any] = value[inside[0]]
        return rows
    if len(value) > 1 and all(isinstance(cell, dict) for cell in value.values()):
        raise UserError(
            f"{path}: an object by column, as pandas writes it: write it with to_json(orient='records', lines=True)"
        )
    if len(value) > 1 and all(isinstance(cell, list) and not _is_messages(cell) for cell in value.values()):
        raise UserError(f"{path}: an object with a list a column: write one object a line as .jsonl")
    return [value]


def _is_messages(cell: list[Any]) -> bool:
    return bool(cell) and all(isinstance(message, dict) for message in cell)


def _values(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the values of a document, with the line where each starts."""
    decoder = json.JSONDecoder(object_pairs_hook=each_once)
    place = line = 0
    while True:
        start = place + len(text[place : place + 4096]) - len(text[place : place + 4096].lstrip())
        while start < len(text) and text[start].isspace():
            start += 1
        line += text.count("\n", place, start)
        if start == len(text):
            if place == 0:
                raise UserError(f"{path}: not JSON: it is empty: fill it, or name other data")
            return
        try:
            value, place = decoder.raw_decode(text, start)
            _require_shallow(value, text[start:place])
        except (ValueError, RecursionError) as error:
            raise _not_json(error, str(path), text, in_lines=True) from error
        yield line + 1, value
        line += text.count("\n", start, place)


def _parsed(line: str, where: str, *, maybe_cut: bool) -> Any:
    try:
        value = json.loads(line, object_pairs_hook=each_once)
        _require_shallow(value, line)
    except (ValueError, RecursionError) as error:
        # The error is at the line's end: the value may continue on the next line.
        if maybe_cut and isinstance(error, json.JSONDecodeError) and line[error.pos :].strip() == "":
            raise _CutError from error
        raise _not_json(error, where, line, in_lines=False) from error
    return value


def _require_shallow(value: Any, text: str) -> None:
    """Refuse nesting that is too deep; a text with few brackets is not searched, to save time."""
    if text.count("[") + text.count("{") > _FEW_BRACKETS:
        require_shallow(value)


def _not_json(error: Exception, where: str, text: str, *, in_lines: bool) -> UserError:
    if isinstance(error, json.JSONDecodeError):
        place = f"{where}:{error.lineno}" if in_lines and "\n" in text.strip() else where
        return UserError(f"{place}: not JSON: {error.msg} at column {error.colno}: correct the file there")
    if isinstance(error, TwiceError):
        return UserError(f"{where}: {error}: rename or remove one")
    return UserError(f"{where}: a number too long or brackets too deep to read: correct the file")


def _object(origin: str, row: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(row, dict):
        raise UserError(f"{origin}: expected an object with named fields, found {_kind(row)}: correct the row")
    return origin, row


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
