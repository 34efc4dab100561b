"""Rows of .jsonl, .json, .csv, .tsv and .parquet files; writes .jsonl."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from antidote_llm.artifacts.files import write_text
from antidote_llm.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def file_rows(path: Path, header: Sequence[str] = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a file row by row.

    Args:
        path: The file.
        header: Columns of a .csv or .tsv file that has no header line of its own.

    Returns:
        Where each row stands, and its values by column.

    Raises:
        UserError: The file is of another kind, missing or malformed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of data file: use one of {' '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such data file: check the name")
    try:
        if suffix == ".jsonl":
            yield from _jsonl_rows(path)
        elif suffix == ".json":
            yield from _json_rows(path)
        elif suffix == ".parquet":
            yield from _parquet_rows(path)
        else:
            yield from _delimited_rows(path, "\t" if suffix == ".tsv" else ",", header)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _object(f"{path}:{number}", _parse_json(line, f"{path}:{number}"))


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = _parse_json(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: expected a list of objects, found {type(rows).__name__}: write one object a line as .jsonl"
        )
    for index, row in enumerate(rows):
        yield _object(f"{path}: row {index}", row)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if "\n" not in text.strip() else f"{where}:{error.lineno}"
        raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}: mend the file there") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: a number too long or brackets too deep to read: mend the file") from error


def _object(origin: str, row: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(row, dict):
        raise UserError(f"{origin}: expected an object with named fields, found {type(row).__name__}: mend the row")
    return origin, row


def _delimited_rows(path: Path, delimiter: str, header: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # A tab-separated file has no quoting: quote marks are part of its sentences.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "	" else csv.QUOTE_MINIMAL
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, quoting=quoting, strict=True)
        start = 1
        try:
            header = header or next(reader, [])
            if twice := [name for name in header if header.count(name) > 1]:
                raise UserError(f"{path}:1: two columns are named '{twice[0]}': rename one")
            start = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{path}:{start}: {len(cells)} columns, but {len(header)} in the header line: mend the row"
                    )
                if cells:
                    yield f"{path}:{start}", dict(zip(header, cells, strict=True))
                # A quoted cell may hold line ends: a row is known by its first line.
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}:{start}: {error}: check the quotes of this row") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path}: not a readable parquet file: {reason}: write or fetch it again") from error
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row
