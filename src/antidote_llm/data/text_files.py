"""Opens text files, packed with gzip or not, and bounds what comes out of them."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from antidote_llm.errors import UserError

# No row of a language model is longer; a file without line ends is no file of rows.
MOST_CHARACTERS_A_ROW = 1 << 26
# A small packed file may hold any number of line ends, and each is looked at.
_MOST_EMPTY_LINES = 1_000_000
# One document is read as a whole.
_MOST_DOCUMENT_CHARACTERS = 1 << 30
# Rows of one text shape are packed to a fiftieth, seldom to less.
_MOST_UNPACKED_TIMES, _MOST_UNPACKED_BYTES = 100, 1 << 26
_GZIP_MARK = b"\x1f\x8b"
_LFS_MARK = b"version https://git-lfs.github.com/spec/"


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark; one that is packed with gzip is unpacked.

    Raises:
        UserError: It is not UTF-8, damaged, a pointer of Git LFS, or unpacks to absurdly much.
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
    """Read line by line, with each line's number.

    Raises:
        UserError: A line is absurdly long, or absurdly many are empty.
    """
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
    """Count the lines that hold something, up to one more than a number: much faster than to read what they hold."""
    with open_text(path) as stream:
        return sum(1 for _ in islice((line for _, line in lines(stream, path) if not line.isspace()), most + 1))


def whole(stream: TextIO, path: Path) -> str:
    """Read all of a file.

    Raises:
        UserError: It is absurdly long.
    """
    text = stream.read(_MOST_DOCUMENT_CHARACTERS + 1)
    if len(text) > _MOST_DOCUMENT_CHARACTERS:
        raise UserError(
            f"{path}: one document of more than {_MOST_DOCUMENT_CHARACTERS:,} characters: write one object a line "
            "as .jsonl"
        )
    return text


def require_bounded(unpacked_bytes: int, packed_bytes: int, path: Path) -> None:
    """Refuse a small file that unpacks to absurdly much.

    Raises:
        UserError: It is more than what rows can be packed to.
    """
    if unpacked_bytes > _MOST_UNPACKED_BYTES + _MOST_UNPACKED_TIMES * packed_bytes:
        raise UserError(
            f"{path}: its {packed_bytes:,} bytes unpack to more than {_MOST_UNPACKED_TIMES} times as many: the same "
            "rows over and over: write each of them once"
        )


class _Unpacked(io.RawIOBase):
    """What gzip unpacks, as long as it is not absurdly much."""

    def __init__(self, path: Path, packed: gzip.GzipFile) -> None:
        self._path, self._packed = path, packed
        self._packed_bytes, self._bytes = path.stat().st_size, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and count what went into it."""
        count = self._packed.readinto(buffer)
        self._bytes += count
        require_bounded(self._bytes, self._packed_bytes, self._path)
        return count
