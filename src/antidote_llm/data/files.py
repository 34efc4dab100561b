"""Reads records from .jsonl, .json, .csv, .tsv and .parquet files, and writes .jsonl."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from antidote_llm.artifacts.files import write_text
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError

Field = Literal["prompt", "response", "text", "input_ids"]
FIELDS: tuple[Field, ...] = ("prompt", "response", "text", "input_ids")
KINDS: tuple[Field, ...] = ("prompt", "text", "input_ids")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_MAPPING = re.compile(r"^(?P<path>.+?):(?P<mapping>\w+=[^=,]+(,\w+=[^=,]+)*)$")


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A file and the columns that hold the fields, as in ``file.csv:prompt=goal,response=target``."""

    path: Path
    columns: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Parse a data argument of the command line.

        Raises:
            UserError: A field is unknown or named twice.
        """
        match = _MAPPING.match(text)
        if match is None:
            return cls(Path(text).expanduser(), {})
        columns: dict[str, str] = {}
        for pair in match["mapping"].split(","):
            name, column = pair.split("=", 1)
            if name not in FIELDS:
                raise UserError(f"{text}: unknown field '{name}': map one of {', '.join(FIELDS)}")
            if name in columns:
                raise UserError(f"{text}: field '{name}' is mapped twice")
            columns[name] = column
        if len(columns.keys() & set(KINDS)) > 1:
            raise UserError(f"{text}: map one of prompt, text and input_ids: a row is only one of them")
        return cls(Path(match["path"]).expanduser(), columns)


def read_records(spec: DataSpec | Path | str, require: Iterable[Field] = ()) -> list[Record]:
    """Read every row of a data file.

    Args:
        spec: The file, with a column mapping where its columns have other names.
        require: Fields that a row of prompt and response must have; rows of ``text`` or ``input_ids`` are complete.

    Raises:
        UserError: The file is missing, empty or malformed, a column is missing, or a row lacks a required field.
    """
    if not isinstance(spec, DataSpec):
        spec = DataSpec.parse(str(spec))
    needed = tuple(require)
    records = [_record(row, origin, spec.columns, needed) for origin, row in _rows(spec.path)]
    if not records:
        raise UserError(f"{spec.path} has no rows")
    return records


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of data file: use one of {' '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such data file")
    try:
        if suffix == ".jsonl":
            yield from _jsonl_rows(path)
        elif suffix == ".json":
            yield from _json_rows(path)
        elif suffix == ".parquet":
            yield from _parquet_rows(path)
        else:
            yield from _delimited_rows(path, "\t" if suffix == ".tsv" else ",")
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
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}")
    for index, row in enumerate(rows):
        yield _object(f"{path}: row {index}", row)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if "\n" not in text.strip() else f"{where}:{error.lineno}"
        raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error


def _object(origin: str, row: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(row, dict):
        raise UserError(f"{origin}: expected an object with named fields, found {type(row).__name__}")
    return origin, row


def _delimited_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # A tab-separated file has no quoting: quote marks are part of its sentences.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "	" else csv.QUOTE_MINIMAL
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, quoting=quoting, strict=True)
        start = 1
        try:
            header = next(reader, [])
            if twice := [name for name in header if header.count(name) > 1]:
                raise UserError(f"{path}:1: two columns are named '{twice[0]}': rename one")
            start = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(f"{path}:{start}: {len(cells)} columns, but {len(header)} in the header line")
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
        raise UserError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row


def _record(row: Mapping[str, Any], origin: str, columns: Mapping[str, str], require: tuple[Field, ...]) -> Record:
    for name, column in columns.items():
        if column not in row:
            raise UserError(f"{origin}: no column '{column}' for {name}: there are {', '.join(map(str, row))}")
    values = {name: row.get(columns.get(name, name)) for name in FIELDS}
    # A kind of row that is asked for by name wins over columns that happen to be there.
    for name in KINDS if columns.keys() & set(KINDS) else ():
        if name not in columns:
            values[name] = None
    used = {columns.get(name, name) for name in FIELDS}
    extra = {key: value for key, value in row.items() if key not in used and key != "response_start"}
    if values["input_ids"] is not None:
        ids = _token_ids(values["input_ids"], origin)
        start = row.get("response_start") or 0
        if not isinstance(start, int) or not 0 <= start <= len(ids):
            raise UserError(f"{origin}: response_start must be between 0 and {len(ids)}")
        return Record(input_ids=ids, response_start=start, extra=extra, origin=origin)
    for name in FIELDS[:3]:
        if values[name] is not None:
            _require_text(values[name], f"{origin}: field '{columns.get(name, name)}'")
    if values["text"] is not None and values["prompt"] is None:
        _require_filled("text", values, origin, columns)
        return Record(text=values["text"], extra=extra, origin=origin)
    if values["prompt"] is None:
        raise UserError(
            f"{origin}: no field 'prompt' (nor 'text' or 'input_ids'): map a column, as in file.csv:prompt=COLUMN; "
            f"there are {', '.join(map(str, row))}"
        )
    for name in require:
        if values[name] is None:
            raise UserError(
                f"{origin}: no field '{name}': map a column, as in file.csv:prompt=COLUMN,{name}=COLUMN; "
                f"there are {', '.join(map(str, row))}"
            )
    needed: tuple[Field, ...] = ("prompt", *require)
    for name in needed:
        _require_filled(name, values, origin, columns)
    return Record(prompt=values["prompt"], response=values["response"], extra=extra, origin=origin)


def _require_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{where} must be text, not {type(value).__name__}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where} holds half a surrogate pair, which is no text: mend or leave out the row")


def _require_filled(name: Field, values: Mapping[Field, Any], origin: str, columns: Mapping[str, str]) -> None:
    if not values[name].strip():
        raise UserError(f"{origin}: field '{columns.get(name, name)}' is empty: fill it or leave the row out")


def _token_ids(value: Any, origin: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(item) is int and item >= 0 for item in value):
        raise UserError(f"{origin}: input_ids must be a list of one or more token ids")
    return tuple(value)
