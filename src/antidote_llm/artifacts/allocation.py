"""How the C library hands memory back."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes: a decoder layer is larger, what is computed for a moment smaller, and used again.
_LARGE_BYTES, _KEPT_BYTES = 1 << 25, 1 << 27


def hand_large_memory_back() -> None:
    """Let every large piece of memory go back to the system as soon as it is free, for the rest of the process.

    Left to itself, glibc moves the border of what it calls large as pieces are freed, and its heaps fall into bits: a
    process that went through a model of 88 MB a layer grew by 8 MB a layer. Elsewhere than on Linux with glibc nothing
    is changed.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
