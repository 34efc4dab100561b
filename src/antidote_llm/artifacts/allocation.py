"""How the C library hands memory back."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


def hand_large_memory_back() -> None:
    """Let every large piece of memory go back to the system as soon as it is free, for the rest of the process.

    Left to itself, glibc raises what it calls large to the largest piece that was freed, and keeps such pieces in heaps
    that fall into bits: a process that goes through a model layer by layer grew by 8 MB a layer. Elsewhere than on
    Linux with glibc nothing is changed.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
