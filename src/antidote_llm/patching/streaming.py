"""Reads weight files piece by piece with some bits flipped, and writes files that are flushed when they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from antidote_llm.errors import changed_meanwhile
from antidote_llm.models.tensor_files import TensorFile
from antidote_llm.patching.encodings import Items, items

_BLOCK_BYTES = 1 << 22


def flipped_pieces(
    file: TensorFile, differences: Mapping[str, Iterable[Items]]
) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Yield all of a file's bytes in order, in blocks: as they are, and with bits flipped.

    Args:
        file: The file.
        differences: By tensor name, the bits that flip, in blocks that make up the tensor.

    Raises:
        UserError: The file ended early.
    """
    # An empty tensor begins where its neighbour does, and comes before it.
    named = sorted((file.entries[key] for key in differences), key=lambda entry: (entry.begin, entry.end))
    with file.stream() as stream:
        for entry in named:
            yield from _plain(stream, entry.begin, file)
            for difference in differences[entry.key]:
                piece = _read(stream, difference.nbytes, file)
                yield piece, (items(piece, difference.itemsize) ^ difference).data.cast("B")
        yield from _plain(stream, file.size_bytes, file)


def _plain(stream: IO[bytes], end: int, file: TensorFile) -> Iterator[tuple[bytes, bytes]]:
    while (position := stream.tell()) < end:
        piece = _read(stream, min(_BLOCK_BYTES, end - position), file)
        yield piece, piece


def _read(stream: IO[bytes], size: int, file: TensorFile) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise changed_meanwhile(file.path)
    return data


@contextmanager
def flushed(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file, and flush it to the disk when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
