"""How a change of one tensor is stored: the bits that flip, of some entries or of all. Each change is its own inverse.

``entries``: a bitmap, one bit an entry, packed, 1 where the entry changes; then the flips of those entries, in order:
the XOR of their old and new bytes, which are the old bytes themselves where the new ones are 0. ``dense``: the XOR of
all bytes, one byte plane after the other, compressed by zlib. Everything works on raw bits, so that -0.0 and every NaN
survive a round trip, and on blocks of entries, so that memory never holds a whole tensor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Encoding = Literal["entries", "dense"]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Items: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
# Returns the bytes at an offset, as many as are asked for.
Read: TypeAlias = Callable[[int, int], bytes]

# A block of it stays in a processor's cache; a multiple of 8, so that a block's bits fill whole bytes.
BLOCK_ENTRIES = 1 << 16
# Differences of weights are mostly noise: a higher level is slower and hardly smaller.
_ZLIB_LEVEL = 1
# No more than that comes of a byte, and of what begins and ends the whole.
_MOST_INFLATION, _INFLATION_REST = 1032, 1 << 16


class DamageError(Exception):
    """What is kept of a change is not what it says it is."""


def items(data: bytes | memoryview | Bytes, item_bytes: int) -> Items:
    """View bytes as one unsigned integer an entry."""
    viewed: Items = np.frombuffer(data, dtype=f"u{item_bytes}")
    return viewed


def entries_bytes(entries: int, changed: int, item_bytes: int) -> int:
    """Return what a change of some entries takes in a patch, and what any change takes at most."""
    return bitmap_bytes(entries) + changed * item_bytes


def most_inflated_bytes(packed_bytes: int) -> int:
    """Return what a change kept as ``dense`` can inflate to at most."""
    return packed_bytes * _MOST_INFLATION + _INFLATION_REST


def bitmap_bytes(entries: int) -> int:
    """Return what one bit an entry takes."""
    return -(-entries // 8)


def entries_differences(bitmap: Read, flips: Read, entries: int, changed: int, item_bytes: int) -> Iterator[Items]:
    """Yield the bits that flip of a change kept as ``entries``, in blocks of entries.

    Raises:
        DamageError: The bitmap marks another number of entries than ``changed``.
    """
    marked = 0
    for begin in range(0, entries, BLOCK_ENTRIES):
        count = min(BLOCK_ENTRIES, entries - begin)
        packed = np.frombuffer(bitmap(begin // 8, bitmap_bytes(count)), dtype=np.uint8)
        differing = np.flatnonzero(np.unpackbits(packed, count=count).view(bool))
        here = len(differing)
        if marked + here > changed:
            break
        difference = np.zeros(count, dtype=f"u{item_bytes}")
        difference[differing] = items(flips(marked * item_bytes, here * item_bytes), item_bytes)
        marked += here
        yield difference
    else:
        if marked == changed:
            return
    raise DamageError("holds another number of entries than it says")


def dense_differences(packed: Read, packed_bytes: int, entries: int, item_bytes: int) -> Iterator[Items]:
    """Yield the bits that flip of a change kept as ``dense``, in blocks of entries.

    Raises:
        DamageError: It does not inflate, or to another size.
    """
    planes = [_Plane(packed, packed_bytes)]
    for _ in range(item_bytes - 1):
        planes.append(planes[-1].at(entries))
    for begin in range(0, entries, BLOCK_ENTRIES):
        count = min(BLOCK_ENTRIES, entries - begin)
        difference = np.empty((count, item_bytes), dtype=np.uint8)
        for index, plane in enumerate(planes):
            difference[:, index] = np.frombuffer(plane.take(count), dtype=np.uint8)
        yield items(difference.reshape(-1), item_bytes)
    planes[-1].require_end()


def packed_planes(differences: Callable[[], Iterable[Items]], item_bytes: int) -> Iterator[bytes]:
    """Yield, compressed, what ``dense`` keeps of the bits that flip, which are gone through once a byte plane."""
    deflater = zlib.compressobj(_ZLIB_LEVEL)
    for plane in range(item_bytes):
        for difference in differences():
            part = np.ascontiguousarray(difference.view(np.uint8).reshape(-1, item_bytes)[:, plane])
            yield deflater.compress(part.data)
    yield deflater.flush()


class _Plane:
    """Inflates a compressed change from one of its byte planes on.

    Args:
        read: Returns bytes of what is compressed.
        size: How many there are.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size, self._position = read, size, 0
        self._inflater = zlib.decompressobj()

    def at(self, offset: int) -> _Plane:
        """Return another one that goes on ``offset`` bytes further."""
        further = _Plane(self._read, self._size)
        further._position, further._inflater = self._position, self._inflater.copy()
        while offset > 0:
            offset -= len(further.take(min(BLOCK_ENTRIES, offset)))
        return further

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        parts = []
        while count > 0:
            part, ended = self._inflate(count)
            if ended and not part:
                raise DamageError("has another size than it says")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def require_end(self) -> None:
        """Raise where more follows, or where what was inflated does not have the checksum that ends it."""
        while not self._inflater.eof:
            part, ended = self._inflate(1)
            if part or (ended and not self._inflater.eof):
                raise DamageError("has another size than it says")
        if self._inflater.unused_data or self._position < self._size:
            raise DamageError("has another size than it says")

    def _inflate(self, most: int) -> tuple[bytes, bool]:
        """Return some bytes more, and whether nothing was left to inflate."""
        data = self._inflater.unconsumed_tail
        if not data:
            data = self._read(self._position, min(BLOCK_ENTRIES, self._size - self._position))
            self._position += len(data)
        try:
            return self._inflater.decompress(data, most), not data
        except zlib.error as error:
            raise DamageError(f"does not inflate: {error}") from error
