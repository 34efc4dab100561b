"""Rows of .parquet and .arrow files, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antidote_llm.data.text_files import require_bounded, too_many_rows
from antidote_llm.errors import UserError, first_line

# Small: one text may be stored once and appear in many rows.
_BATCH_ROWS = 32
# Below this, rows that take no space in the file are harmless.
_FEW_ROWS = 10_000
_ARROW_FILE_MARK = b"ARROW1"
# What pyarrow raises for values that Python cannot hold: dates after the year 9999, unknown time zones, broken text.
UNREADABLE = (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError, ImportError, RecursionError)

Rows = Iterator[tuple[str, Mapping[str, Any]]]


def parquet_rows(path: Path, most: int | None) -> Rows:
    """Read a parquet file row by row.

    Args:
        path: The file.
        most: How many rows may be read; None for all.

    Raises:
        UserError: It is damaged, holds values that cannot be read, or claims too many rows.
    """
    size = path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            _require_names(file.schema_arrow.names, path)
            require_rows(file.metadata.num_rows, size, most, path)
            claimed = sum(
                file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)
            )
            require_bounded(claimed, size, path)
            yield from _rows(file.iter_batches(batch_size=_BATCH_ROWS), size, path)
    except (*UNREADABLE, OSError) as error:
        raise _damaged("parquet", error, path) from error


def arrow_rows(path: Path, most: int | None) -> Rows:
    """Read an Arrow file or stream row by row; errors are as for :func:`parquet_rows`."""
    size = path.stat().st_size
    try:
        with path.open("rb") as raw:
            is_file = raw.read(len(_ARROW_FILE_MARK)) == _ARROW_FILE_MARK
        with pa.OSFile(str(path)) as source:
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            _require_names(reader.schema.names, path)
            yield from _rows(_batches(reader, is_file, size, most, path), size, path)
    except (*UNREADABLE, OSError) as error:
        raise _damaged("Arrow", error, path) from error


def require_rows(count: int, size_bytes: int, most: int | None, path: Path) -> None:
    """Refuse more rows than may be read, or than the file has bytes, before the first is read."""
    if most is not None and count > most:
        raise too_many_rows(path, most, f"{count:,}")
    if count > max(_FEW_ROWS, size_bytes):
        raise UserError(
            f"{path}: {count:,} rows in {size_bytes:,} bytes: the same row over and over: write each row once"
        )


def _batches(reader: Any, is_file: bool, size: int, most: int | None, path: Path) -> Iterator[Any]:
    count = 0
    for whole in (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader:
        count += whole.num_rows
        require_rows(count, size, most, path)
        for start in range(0, whole.num_rows, _BATCH_ROWS):
            yield whole.slice(start, _BATCH_ROWS)


def _rows(batches: Iterator[Any], size: int, path: Path) -> Rows:
    index = unpacked = 0
    for batch in batches:
        require_bounded(unpacked + batch.nbytes, size, path)
        for row in _as_python(batch, path, index):
            unpacked += sum(len(cell) for cell in row.values() if isinstance(cell, str))
            yield f"{path}: row {index}", row
            index += 1


def _as_python(batch: Any, path: Path, first: int) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UNREADABLE as error:
        name = next((name for name in batch.schema.names if not _is_readable(batch.column(name))), "?")
        raise UserError(
            f"{path}: rows from {first} on: column '{name}' holds a value that cannot be read ({first_line(error)}): "
            "write the file again without it, or as text"
        ) from error


def _is_readable(column: Any) -> bool:
    try:
        column.to_pylist()
    except UNREADABLE:
        return False
    return True


def _require_names(names: Sequence[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: two columns are named '{twice[0]}': rename one")


def _damaged(kind: str, error: Exception, path: Path) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{path}: cannot be read: {error.strerror}: check its permissions")
    reason = first_line(error).rstrip(".")
    return UserError(f"{path}: not a readable {kind} file: {reason}: write or fetch it again")
