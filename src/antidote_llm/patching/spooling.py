"""Keeps the changes of tensors in a scratch file until the patch is written, in memory only a block of entries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from antidote_llm.artifacts.files import read_at, write_at
from antidote_llm.patching.encodings import Items, bitmap_bytes, entries_bytes, entries_differences

_BLOCK_BYTES = 1 << 20


class SpooledChange:
    """The change of one tensor, at one place of a scratch file: the packed bitmap, then the flips.

    Args:
        handle: The scratch file, opened for reading and writing.
        begin: Where the change goes.
        entries: How many entries the tensor has.
        item_bytes: How many bytes an entry has.
    """

    def __init__(self, handle: int, begin: int, entries: int, item_bytes: int) -> None:
        self.entries, self.item_bytes = entries, item_bytes
        self.changed = 0
        self._handle, self._begin = handle, begin
        self._flips_begin = begin + bitmap_bytes(entries)
        self._bitmap_end = begin
        # The bits that do not fill a byte yet.
        self._bits: npt.NDArray[np.bool_] = np.zeros(0, dtype=bool)

    @property
    def size_bytes(self) -> int:
        """What it takes in the scratch file, and in a patch."""
        return entries_bytes(self.entries, self.changed, self.item_bytes)

    @property
    def end(self) -> int:
        """Where the next change may begin."""
        return self._begin + self.size_bytes

    def add(self, before: Items, after: Items) -> bool:
        """Keep how the next entries change, any number of them; return whether they do."""
        flips = before ^ after
        differs = flips != 0
        # By index: by mask, a processor guesses at every entry, and is wrong.
        found = flips.take(np.flatnonzero(differs))
        write_at(self._handle, found.data, self._flips_begin + self.changed * self.item_bytes)
        self.changed += len(found)
        bits = np.concatenate([self._bits, differs]) if len(self._bits) else differs
        whole = len(bits) // 8 * 8
        self._write_bits(bits[:whole])
        self._bits = bits[whole:].copy()
        return len(found) > 0

    def close(self) -> None:
        """Keep the last bits: nothing follows."""
        self._write_bits(self._bits)

    def _write_bits(self, bits: npt.NDArray[np.bool_]) -> None:
        packed = np.packbits(bits)
        write_at(self._handle, packed.data, self._bitmap_end)
        self._bitmap_end += len(packed)

    def pieces(self) -> Iterator[bytes]:
        """Yield bitmap and flips as they lie there."""
        for begin in range(self._begin, self.end, _BLOCK_BYTES):
            yield read_at(self._handle, begin, min(_BLOCK_BYTES, self.end - begin))

    def differences(self) -> Iterator[Items]:
        """Yield the bits that flip, in blocks of entries."""
        return entries_differences(
            lambda offset, size: read_at(self._handle, self._begin + offset, size),
            lambda offset, size: read_at(self._handle, self._flips_begin + offset, size),
            self.entries,
            self.changed,
            self.item_bytes,
        )
