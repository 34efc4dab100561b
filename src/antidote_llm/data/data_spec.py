"""A data argument: the path, its columns, its weight, and how many rows are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from antidote_llm.errors import UserError
from antidote_llm.io.strict_json import is_utf8

Field: TypeAlias = Literal[
    "prompt", "response", "text", "input_ids", "messages", "system", "context", "input", "history"
]
FIELDS: tuple[Field, ...] = get_args(Field)
_FIELD_OF: Mapping[str, Field] = {name: name for name in FIELDS}
# What a row can be; where it could be several, the first counts.
KINDS: tuple[Field, ...] = ("input_ids", "messages", "prompt", "text")
# Fields that are combined with a prompt; messages hold all of them except the system prompt.
PARTS_OF_A_PROMPT: tuple[Field, ...] = ("system", "context", "input", "history")
_WEIGHT, _ROWS, _IGNORE = "weight", "rows", "ignore"
_AFTER_A_FILE = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|arrow)(\.gz)?:")
_PAIR = r'\w+=(?:"(?:[^"]|"")+"|[^=,"][^=,]*)'
_MAPPING = re.compile(rf"^(?P<path>.+?):(?P<mapping>{_PAIR}(?:,\s*{_PAIR})*)$", re.DOTALL)
_PAIRS = re.compile(r'(?P<name>\w+)=(?:"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^=,"][^=,]*))')


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A file and the columns that hold the fields, as in ``file.csv:prompt=goal,response=target,weight=2``.

    Attributes:
        path: The file.
        columns: Column by field, where the names differ.
        weight: How much of a mix comes from this file; None where it was not given.
        ignored: Columns, and fields of messages, that are left out on purpose.
        rows: How many of its first rows are read; None for all.
    """

    path: Path
    columns: Mapping[Field, str]
    weight: float | None = None
    ignored: tuple[str, ...] = ()
    rows: int | None = None

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Parse a data argument.

        A column whose name holds a comma or an equals sign is written in double quotes, as in
        ``prompt="goal, in full"``; a double quote in it is doubled.

        Raises:
            UserError: A field is unknown or mapped twice, the weight is not a positive number, the number of rows not a
                positive integer, or the name is not UTF-8.
        """
        if not text.strip():
            raise UserError("data without a name: name a file, a preset or a Hub id")
        require_utf8(text)
        match = _MAPPING.match(text)
        if match is None:
            if _AFTER_A_FILE.search(text) and not _exists(Path(text).expanduser()):
                raise UserError(
                    f"{text}: no mapping of columns: write it as in file.csv:prompt=goal,response=target; put double "
                    "quotes around a column with a comma or an equals sign in its name"
                )
            return cls(Path(text).expanduser(), {})
        given: dict[str, str] = {}
        ignored: list[str] = []
        for name, column in _pairs(match["mapping"]):
            if name == _IGNORE:
                ignored.append(column)
                continue
            if name not in (*FIELDS, _WEIGHT, _ROWS):
                raise UserError(
                    f"{text}: unknown field '{name}': map one of {', '.join(FIELDS)}, or give weight, rows or ignore"
                )
            if name in given:
                raise UserError(f"{text}: field '{name}' is mapped twice: map it once")
            given[name] = column
        weight = _weight(given.pop(_WEIGHT), text) if _WEIGHT in given else None
        rows = _rows(given.pop(_ROWS), text) if _ROWS in given else None
        columns = {_FIELD_OF[name]: column for name, column in given.items()}
        _require_one_kind(columns, text)
        if both := [column for column in ignored if column in columns.values()]:
            raise UserError(f"{text}: column '{both[0]}' is mapped and ignored: leave one of the two out")
        return cls(Path(match["path"]).expanduser(), columns, weight, tuple(ignored), rows)


def require_utf8(name: str) -> None:
    """Refuse a file name that is not UTF-8, as no record could hold it."""
    if not is_utf8(name):
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"{shown}: the name is not UTF-8, so that no record can hold it: rename the file")


def quoted(column: str) -> str:
    """Return a column's name as a mapping writes it, quoted where needed."""
    if re.fullmatch(r'[^=,"][^=,]*', column):
        return column
    return '"' + column.replace('"', '""') + '"'


def _pairs(mapping: str) -> Iterator[tuple[str, str]]:
    for pair in _PAIRS.finditer(mapping):
        in_quotes = pair["quoted"]
        yield pair["name"], pair["plain"] if in_quotes is None else in_quotes.replace('""', '"')


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # The name is too long, or the folder may not be read: the reader reports which.
        return False


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"{where}: weight '{text}' is no number above 0: give one, as in file.csv:weight=2")
    return weight


def _rows(text: str, where: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,11}", text):
        raise UserError(f"{where}: rows '{text}' is no whole number above 0: give one, as in file.csv:rows=1000")
    return int(text)


def _require_one_kind(columns: Mapping[Field, str], where: str) -> None:
    kinds = [name for name in KINDS if name in columns]
    if len(kinds) > 1:
        raise UserError(f"{where}: map one of prompt, text, input_ids and messages: a row is only one of them")
    parts = [name for name in PARTS_OF_A_PROMPT if name in columns]
    if parts and kinds in (["text"], ["input_ids"]):
        what = "system prompt" if parts[0] == "system" else parts[0]
        raise UserError(f"{where}: a row of {kinds[0]} takes no {what}: leave {parts[0]}={columns[parts[0]]} out")
    if kinds == ["messages"] and (parts := [name for name in parts if name != "system"]):
        raise UserError(
            f"{where}: messages are the whole conversation: leave {parts[0]}={columns[parts[0]]} out, or map a prompt"
        )
