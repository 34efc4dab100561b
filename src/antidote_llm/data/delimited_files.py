"""Rows of .csv and .tsv files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from antidote_llm.data.text_files import MOST_CHARACTERS_A_ROW, lines, open_text
from antidote_llm.errors import UserError

# What spreadsheets write where the comma marks decimals, and what else is common.
_OTHER_DELIMITERS = ";\t|"
# The first line with which spreadsheets say what divides the columns.
_SAYS_DELIMITER = "sep="
# A cell in quotes with quotes in it; one that is cut by a tab or line end in it; and any, as in a header.
_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
_BEGINS_QUOTED = re.compile(r'"(?:[^"]|"")*"?')
_IN_QUOTES = re.compile(r'"[^"]*"')


def delimited_rows(path: Path, delimiter: str, header: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read row by row; a .csv file with no comma in its header line may be divided by semicolons, tabs or bars.

    Args:
        path: The file.
        delimiter: A comma, or a tab: a tab-separated file has no quoting, quote marks are part of its sentences.
        header: Columns of a file that has no header line of its own.

    Raises:
        UserError: The quotes or the number of cells of a row are wrong, or two columns have one name.
    """
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    if delimiter == ",":
        with open_text(path, newline="") as stream:
            # Where something else divides cells in quotes, commas alone would find the quotes wrong.
            delimiter = _delimiter(_Rows(path, stream, delimiter, quoting, strict=False).first())
    own_header = not header
    with open_text(path, newline="") as stream:
        rows = _Rows(path, stream, delimiter, quoting)
        if own_header:
            header = rows.first()
            if header[:1] == [f"{_SAYS_DELIMITER}{delimiter}"] or header == [_SAYS_DELIMITER, ""]:
                header = rows.first()
            _require_unquoted(header, f"{path}:{rows.start}", quoting, _IN_QUOTES)
            header = _named(header, f"{path}:{rows.start}")
        for cells in rows:
            if own_header:
                _require_unquoted(cells, f"{path}:{rows.start}", quoting)
            if cells and len(cells) != len(header):
                _require_unquoted(cells, f"{path}:{rows.start}", quoting, _BEGINS_QUOTED)
                raise UserError(
                    f"{path}:{rows.start}: {len(cells)} columns, but {len(header)} in the header line: correct the row"
                )
            # Spreadsheets write an empty line as cells without anything.
            if cells and (len(cells) == 1 or any(cell.strip() for cell in cells)):
                yield f"{path}:{rows.start}", dict(zip(header, cells, strict=True))


def _require_unquoted(cells: Sequence[str], where: str, quoting: int, pattern: re.Pattern[str] = _QUOTED) -> None:
    """Refuse cells in quotes where quotes are text: programs that write them double those inside."""
    if quoting == csv.QUOTE_NONE and any(pattern.fullmatch(cell) for cell in cells):
        raise UserError(
            f"{where}: a cell in quotes, which are text in a .tsv file: name the file .csv, where tabs may divide the "
            "columns and quotes do not count"
        )


class _Rows:
    """The cells of each row, and the line that it begins at: a quoted cell may hold line ends."""

    def __init__(
        self, path: Path, stream: TextIO, delimiter: str, quoting: Literal[0, 3], *, strict: bool = True
    ) -> None:
        self._path = path
        self._reader = csv.reader(
            (line for _, line in lines(stream, path)), delimiter=delimiter, quoting=quoting, strict=strict
        )
        self.start = 1

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        self.start = self._reader.line_num + 1
        # The limit belongs to the whole process: it is another one only while this row is parsed.
        before = csv.field_size_limit(MOST_CHARACTERS_A_ROW)
        try:
            return next(self._reader)
        except csv.Error as error:
            raise UserError(f"{self._path}:{self.start}: {error}: check the quotes of this row") from error
        finally:
            csv.field_size_limit(before)

    def first(self) -> list[str]:
        """Return the first row that is not empty; nothing where there is none."""
        return next((cells for cells in self if cells), [])


def _delimiter(header: Sequence[str]) -> str:
    first = header[0] if header else ""
    if first.startswith(_SAYS_DELIMITER):
        return first.removeprefix(_SAYS_DELIMITER)[:1] or ","
    return next((other for other in _OTHER_DELIMITERS if len(header) == 1 and other in first), ",")


def _named(header: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns; a second one without a name, as spreadsheets leave them, gets its number."""
    seen: set[str] = set()
    named = []
    for place, name in enumerate(header):
        if name in seen and name.strip():
            raise UserError(f"{where}: two columns are named '{name}': rename one")
        named.append(f"column {place + 1}" if name in seen else name)
        seen.add(name)
    return named
