"""Opens text files, plain or packed with gzip, and limits how much is read from them."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

from antidote_llm.errors import UserError

# No row is longer; a file without line ends is not a file of rows.
MOST_CHARACTERS_A_ROW = 1 << 26
# A small packed file may hold any number of line ends, and each is read.
_MOST_EMPTY_LINES = 1_000_000
# A document is read whole.
_MOST_DOCUMENT_CHARACTERS = 1 << 30
# Similar rows pack to about a fiftieth of their size, rarely to less.
_MOST_UNPACKED_TIMES, _MOST_UNPACKED_BYTES = 100, 1 << 26
_GZIP_MARK = b"\x1f\x8b"
_LFS_MARK = b"version https://git-lfs.github.com/spec/"


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark; a file packed with gzip is unpacked.

    Raises:
        UserError: It is damaged, not UTF-8, a Git LFS pointer, or unpacks to too much.
    """
    try:
        with path.open("rb") as raw:
            mark = raw.peek(len(_LFS_MARK))[: len(_LFS_MARK)]
            if mark == _LFS_MARK:
                raise UserError(f"{path}: a pointer of Git LFS, not the data: fetch them with git lfs pull")
            stream: io.BufferedReader = raw
            if mark.startswith(_GZIP_MARK):
                stream = io.BufferedReader(_Unpacked(path, gzip.GzipFile(fileobj=raw, mode="rb")))
            elif path.suffix.lower() == ".gz":
                raise UserError(f"{path}: not packed with gzip: write or fetch it again, or rename it without .gz")
            with io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as text:
                yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: packed with gzip, but damaged or cut off: write or fetch it again") from error


def lines(stream: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers; refuse lines that are too long, and too many empty ones."""
    number = empty = 0
    while line := stream.readline(MOST_CHARACTERS_A_ROW + 1):
        number += 1
        empty += line.isspace()
        if empty > _MOST_EMPTY_LINES:
            raise UserError(f"{path}:{number}: more than {_MOST_EMPTY_LINES:,} empty lines: remove them")
        if len(line) > MOST_CHARACTERS_A_ROW:
            raise UserError(
                f"{path}:{number}: a line of more than {MOST_CHARACTERS_A_ROW:,} characters: write one row a line"
            )
        yield number, line


def filled_lines(path: Path, most: int) -> int:
    """Count the lines that are not empty, up to one more than ``most``: much faster than parsing them."""
    with open_text(path) as stream:
        return sum(1 for _ in islice((line for _, line in lines(stream, path) if not line.isspace()), most + 1))


def whole(stream: TextIO, path: Path) -> str:
    """Read a whole file; refuse one that is too long."""
    text = stream.read(_MOST_DOCUMENT_CHARACTERS + 1)
    if len(text) > _MOST_DOCUMENT_CHARACTERS:
        raise UserError(
            f"{path}: one document of more than {_MOST_DOCUMENT_CHARACTERS:,} characters: write one object a line "
            "as .jsonl"
        )
    return text


def require_bounded(unpacked_bytes: int, packed_bytes: int, path: Path) -> None:
    """Refuse a small file that unpacks to far more than packed rows can."""
    if unpacked_bytes > _MOST_UNPACKED_BYTES + _MOST_UNPACKED_TIMES * packed_bytes:
        raise UserError(
            f"{path}: its {packed_bytes:,} bytes unpack to more than {_MOST_UNPACKED_TIMES} times as many: the same "
            "rows over and over: write each of them once"
        )


def too_many_rows(path: Path, most: int, count: str = "") -> UserError:
    """Return the error of a file with more rows than are read unasked."""
    found = f"{count} rows, more than the {most:,}" if count else f"more rows than the {most:,}"
    name = path.name if path.is_absolute() else path
    return UserError(
        f"{path}: {found} that are read unasked: pass how many of the first to read, as in {name}:rows={most}"
    )


class _Unpacked(io.RawIOBase):
    """The stream that gzip unpacks, with a limit on its size."""

    def __init__(self, path: Path, packed: gzip.GzipFile) -> None:
        self._path, self._packed = path, packed
        self._packed_bytes, self._bytes = path.stat().st_size, 0

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and count the bytes towards the limit."""
        count = self._packed.readinto(buffer)
        self._bytes += count
        require_bounded(self._bytes, self._packed_bytes, self._path)
        return count


# Other common delimiters: spreadsheets write semicolons where the comma is the decimal mark.
_OTHER_DELIMITERS = ";\t|"
# Some spreadsheets name the delimiter in a first line.
_SAYS_DELIMITER = "sep="
# A quoted cell with doubled quotes; one that may be cut by a tab or a line end; and any, as in a header.
_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
_BEGINS_QUOTED = re.compile(r'"(?:[^"]|"")*"?')
_IN_QUOTES = re.compile(r'"[^"]*"')


def delimited_rows(path: Path, delimiter: str, header: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read row by row; a .csv file without a comma in its header may use semicolons, tabs or bars.

    Args:
        path: The file.
        delimiter: A comma, or a tab: in a tab-separated file, quote marks are ordinary characters.
        header: Columns of a file without a header line.

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
        # The limit is global to the process: it is changed only while this row is parsed.
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
    """Return the names of the columns; further ones without a name, as spreadsheets write them, get their number."""
    seen: set[str] = set()
    named = []
    for place, name in enumerate(header):
        if name in seen and name.strip():
            raise UserError(f"{where}: two columns are named '{name}': rename one")
        named.append(f"column {place + 1}" if name in seen else name)
        seen.add(name)
    return named
