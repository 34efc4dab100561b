"""A weight file and its copy, which is edited in place at any offset."""

from __future__ import annotations

import os
from io import BufferedReader, FileIO
from pathlib import Path

from antidote_llm.artifacts.files import clone_content, read_at, write_at
from antidote_llm.errors import changed_meanwhile
from antidote_llm.models.tensor_files import TensorFile


class EditedCopy:
    """Reads a weight file, and writes into its copy, which is made when it is first written to.

    Args:
        source: The file.
        target: The copy; without it nothing is written.
    """

    def __init__(self, source: TensorFile, target: Path | None) -> None:
        self.source, self.target = source, target
        self._reader: BufferedReader | None = None
        self._writer: FileIO | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file.

        Raises:
            UserError: It is gone, or ended early.
        """
        try:
            return read_at(self._opened().fileno(), offset, size)
        except EOFError as error:
            raise changed_meanwhile(self.source.path) from error

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of the copy.

        Raises:
            UserError: The file is gone, or changed while it was copied.
        """
        if self.target is not None:
            write_at(self._copied(self.target).fileno(), data, offset)

    def flush(self) -> None:
        """See that the copy is made and lies on the disk; close both files.

        Raises:
            UserError: As :meth:`write`.
        """
        if self.target is not None:
            os.fsync(self._copied(self.target).fileno())
        self.close()

    def close(self) -> None:
        """Close both files."""
        for stream in (self._reader, self._writer):
            if stream is not None:
                stream.close()
        self._reader = self._writer = None

    def _opened(self) -> BufferedReader:
        if self._reader is None:
            self._reader = self.source.stream()
        return self._reader

    def _copied(self, target: Path) -> FileIO:
        if self._writer is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._writer = target.open("wb", buffering=0)
            clone_content(self._opened(), self._writer)
            if os.fstat(self._writer.fileno()).st_size != self.source.size_bytes:
                raise changed_meanwhile(self.source.path)
        return self._writer
