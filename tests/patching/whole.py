"""A reference implementation: the patch of one tensor, made from the whole of it at once."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def parts_between(before: Bytes, after: Bytes, item_bytes: int) -> dict[str, bytes]:
    """Return what a patch keeps of a change, by name: nothing where nothing changes."""
    flips = (before ^ after).reshape(-1, item_bytes)
    differs = flips.any(axis=1)
    if not differs.any():
        return {}
    entries = {"bitmap": np.packbits(differs).tobytes(), "flips": flips[differs].tobytes()}
    if differs.sum() > len(flips) // 2:
        dense = zlib.compress(np.ascontiguousarray(flips.T).tobytes(), level=1)
        if len(dense) < sum(map(len, entries.values())):
            return {"xor": dense}
    return entries
