"""Rows of .jsonl, .json, .csv, .tsv, .parquet and .arrow files; writes .jsonl."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from antidote_llm.data.data_spec import require_utf8
from antidote_llm.data.json_files import json_document, json_lines
from antidote_llm.data.text_files import delimited_rows, filled_lines, too_many_rows
from antidote_llm.errors import UserError
from antidote_llm.io.files import write_text

_LINES, _TABLES = (".jsonl", ".ndjson"), (".parquet", ".arrow")
_TEXTS = (*_LINES, ".json", ".csv", ".tsv")
SUFFIXES = (*_TEXTS, *_TABLES)
# More rows take hours and gigabytes, so that they are read only on request.
MOST_ROWS = 1_000_000
_UNPACK = {
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".lzma": "unlzma",
    ".zst": "unzstd",
    ".lz4": "unlz4",
    ".zip": "unzip",
    ".7z": "7z x",
    ".tgz": "tar -xf",
    ".tar": "tar -xf",
}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def is_file(path: Path) -> bool:
    """Whether a regular file exists; UserError where the system forbids looking."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: Path) -> bool:
    """Whether a folder exists; UserError where the system forbids looking."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_special(path: Path) -> bool:
    """Whether something exists that is neither a file nor a folder, such as a pipe."""
    mode = _mode(path)
    return mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def has_known_suffix(path: Path) -> bool:
    """Whether a name has the suffix of a data file."""
    return _suffix(path) in SUFFIXES


def file_rows(
    path: Path, header: Sequence[str] = (), rows: int | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a file row by row.

    Args:
        path: The file.
        header: Columns of a .csv or .tsv file without a header line.
        rows: How many of its first rows; None for all, up to ``MOST_ROWS``.

    Returns:
        Each row's origin for messages, and its values by column.

    Raises:
        UserError: The file is of another kind, missing or malformed, or has more rows than ``MOST_ROWS``.
    """
    require_utf8(str(path))
    suffix = _suffix(path)
    if suffix in _UNPACK or suffix.removesuffix(".gz") in _UNPACK:
        raise UserError(f"{path}: packed as {suffix}, which is not read: unpack it first, as with {_UNPACK[suffix]}")
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: unknown kind of data file: use one of {' '.join(SUFFIXES)}, or .gz of the text files among them"
        )
    if not is_file(path):
        raise _no_file(path)
    most = MOST_ROWS if rows is None else None
    try:
        if rows is None and _may_be_absurd(path):
            _require_count(path, suffix, header)
        if suffix in _LINES:
            found = json_lines(path)
        elif suffix == ".json":
            found = json_document(path)
        elif suffix in _TABLES:
            from antidote_llm.data.table_files import arrow_rows, parquet_rows  # loads pyarrow

            found = parquet_rows(path, most) if suffix == ".parquet" else arrow_rows(path, most)
        else:
            found = delimited_rows(path, "\t" if suffix == ".tsv" else ",", header)
        yield from bounded(found, rows, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}: check its permissions") from error


def _may_be_absurd(path: Path) -> bool:
    """Whether a text file may hold more than ``MOST_ROWS``: it is packed, or has two bytes for each of them."""
    return path.suffix.lower() == ".gz" or path.stat().st_size > 2 * MOST_ROWS


def _require_count(path: Path, suffix: str, header: Sequence[str]) -> None:
    """Refuse a file with more than ``MOST_ROWS`` by counting lines, which is much faster than reading rows."""
    count = 0
    if suffix in _LINES:
        count = filled_lines(path, MOST_ROWS)
    elif suffix in (".csv", ".tsv"):
        found = delimited_rows(path, "\t" if suffix == ".tsv" else ",", header)
        count = sum(1 for _ in islice(found, MOST_ROWS + 1))
    if count > MOST_ROWS:
        raise too_many_rows(path, MOST_ROWS)


def bounded(
    found: Iterator[tuple[str, Mapping[str, Any]]], rows: int | None, path: Path
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the first rows; all where ``rows`` is None, which is refused above ``MOST_ROWS``."""
    if rows is not None:
        yield from islice(found, rows)
        return
    yield from islice(found, MOST_ROWS)
    if next(found, None) is not None:
        raise too_many_rows(path, MOST_ROWS)


def _suffix(path: Path) -> str:
    """Return a name's suffix in lower case, without the .gz of a packed text file."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix == ".gz" and inner in _TEXTS else suffix


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be looked at: {error.strerror or error}: check the name and the permissions"
        ) from error


def _no_file(path: Path) -> UserError:
    mode = _mode(path)
    if mode is None:
        dangling = os.path.lexists(path)
        return UserError(f"{path}: {'a link to nothing' if dangling else 'no such data file'}: check the name")
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    return UserError(f"{path}: {what}, no data file: write the rows to a file, and name that")
