"""The hash that a patch holds of itself: of all its bytes, with zeros in the place of the hash.

The hash is the first thing in the file's header, so that it is found without reading any of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SHA256_KEY = "antidote_patch_sha256"
UNSEALED = "0" * 64
_BEFORE = f'{{"__metadata__":{{"{SHA256_KEY}":"'.encode()
_BEGIN = 8 + len(_BEFORE)
_END = _BEGIN + len(UNSEALED)
_BLOCK_BYTES = 1 << 22


def seal(stream: IO[bytes]) -> str:
    """Write the hash of a file into its header, which holds zeros there, and return it.

    Args:
        stream: The file, opened for writing by a descriptor that also reads.
    """
    stream.flush()
    sha256 = _sha256(stream.fileno())
    stream.seek(_BEGIN)
    stream.write(sha256.encode())
    stream.flush()
    return sha256


def sealed_sha256(path: Path) -> str | None:
    """Return the hash that a file holds of itself, whatever is in its place; None where it has no place for one."""
    with path.open("rb") as stream:
        start = stream.read(_END)[8:]
    return start[len(_BEFORE) :].decode(errors="replace") if start.startswith(_BEFORE) else None


def sha256_without_seal(path: Path) -> str:
    """Return the hash of a file with zeros in the place of its own."""
    with path.open("rb") as stream:
        return _sha256(stream.fileno())


def _sha256(handle: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(handle):
        digest.update(block)
    return digest.hexdigest()


def _blocks(handle: int) -> Iterator[bytes]:
    first = os.pread(handle, _END, 0)
    yield first[:_BEGIN] + UNSEALED.encode()
    position = _END
    while block := os.pread(handle, _BLOCK_BYTES, position):
        yield block
        position += len(block)
