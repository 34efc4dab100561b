"""How the change of one tensor is kept: as a bitmap with the old values, or as the compressed XOR of the bits.

Everything works on raw bits, so that -0.0 and every NaN survive a round trip.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from antidote_llm.errors import UserError

Encoding = Literal["zeroed", "xor"]
Bytes = npt.NDArray[np.uint8]


class TensorChange(Protocol):
    """The change of one tensor, both ways."""

    @property
    def encoding(self) -> Encoding:
        """The name of the way it is kept."""

    def apply(self, bits: Bytes) -> Bytes:
        """Return the bytes after the change."""

    def revert(self, bits: Bytes) -> Bytes:
        """Return the bytes before the change."""

    def parts(self) -> dict[str, Bytes]:
        """Return what is stored, by name."""

    def changed(self) -> Bytes:
        """Return one 0 or 1 an entry: which entries change."""


@dataclass(frozen=True)
class Zeroed:
    """Some entries become +0.0.

    Attributes:
        bitmap: One bit an entry, packed, 1 where the entry is zeroed.
        old: The bytes of those entries, in order.
        entries: How many entries the tensor has.
        item_bytes: How many bytes an entry has.
    """

    bitmap: Bytes
    old: Bytes
    entries: int
    item_bytes: int
    encoding: Encoding = "zeroed"

    @classmethod
    def between(cls, before: Bytes, after: Bytes, item_bytes: int) -> Zeroed | None:
        """Return the change, or None where a changed entry did not become +0.0."""
        old, new = before.reshape(-1, item_bytes), after.reshape(-1, item_bytes)
        differs = (old != new).any(axis=1)
        if new[differs].any():
            return None
        return cls(np.packbits(differs), old[differs].reshape(-1), len(old), item_bytes)

    def apply(self, bits: Bytes) -> Bytes:
        """Zero the entries."""
        changed = bits.reshape(-1, self.item_bytes).copy()
        changed[self._mask()] = 0
        return changed.reshape(-1)

    def revert(self, bits: Bytes) -> Bytes:
        """Put the old entries back."""
        changed = bits.reshape(-1, self.item_bytes).copy()
        changed[self._mask()] = self.old.reshape(-1, self.item_bytes)
        return changed.reshape(-1)

    def parts(self) -> dict[str, Bytes]:
        """Return bitmap and old values."""
        return {"bitmap": self.bitmap, "old": self.old}

    def changed(self) -> Bytes:
        """Return one 0 or 1 an entry."""
        return np.unpackbits(self.bitmap, count=self.entries)

    def _mask(self) -> npt.NDArray[np.bool_]:
        return self.changed().astype(bool)


@dataclass(frozen=True)
class Xored:
    """Any change of the bits: its own inverse.

    Attributes:
        packed: The XOR of the bytes, byte planes apart, compressed by zlib.
        entries: How many entries the tensor has.
        item_bytes: How many bytes an entry has.
    """

    packed: Bytes
    entries: int
    item_bytes: int
    encoding: Encoding = "xor"

    @classmethod
    def between(cls, before: Bytes, after: Bytes, item_bytes: int) -> Xored:
        """Return the change."""
        planes = np.ascontiguousarray((before ^ after).reshape(-1, item_bytes).T)
        packed = np.frombuffer(zlib.compress(planes.tobytes(), level=6), dtype=np.uint8)
        return cls(packed, len(before) // item_bytes, item_bytes)

    def apply(self, bits: Bytes) -> Bytes:
        """Flip the bits."""
        flipped: Bytes = np.asarray(bits ^ self._difference().reshape(-1))
        return flipped

    def revert(self, bits: Bytes) -> Bytes:
        """Flip the bits back."""
        return self.apply(bits)

    def parts(self) -> dict[str, Bytes]:
        """Return the compressed difference."""
        return {"xor": self.packed}

    def changed(self) -> Bytes:
        """Return one 0 or 1 an entry."""
        differs: Bytes = np.asarray(self._difference().any(axis=1), dtype=np.uint8)
        return differs

    def _difference(self) -> Bytes:
        size = self.entries * self.item_bytes
        inflater = zlib.decompressobj()
        try:
            planes = inflater.decompress(self.packed.tobytes(), size)
        except zlib.error as error:
            raise UserError(f"the patch is damaged: {error}") from error
        if len(planes) != size or inflater.unconsumed_tail:
            raise UserError("the patch is damaged: a compressed tensor has another size than it says")
        return np.ascontiguousarray(np.frombuffer(planes, dtype=np.uint8).reshape(self.item_bytes, -1).T)


def change_between(before: Bytes, after: Bytes, item_bytes: int) -> TensorChange | None:
    """Return a change as zeroed entries where it is that, as XOR otherwise; None where nothing changed."""
    if np.array_equal(before, after):
        return None
    return Zeroed.between(before, after, item_bytes) or Xored.between(before, after, item_bytes)


def predicted_bytes(entries: int, changed: int, item_bytes: int, *, zeroed: bool) -> int:
    """Return what a change takes in a patch: exact where entries are zeroed, an upper bound of a dense change."""
    if zeroed:
        return -(-entries // 8) + changed * item_bytes
    # zlib stores what it cannot shrink: five bytes a block of 16 KiB, and a frame.
    size = entries * item_bytes
    return size + 5 * (size // 16_000 + 1) + 6
