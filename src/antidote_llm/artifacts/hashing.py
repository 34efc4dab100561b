"""sha256 of files, bytes and JSON values, as lower-case hexadecimal."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from antidote_llm.artifacts.json_writing import json_text

_CHUNK_BYTES = 1 << 22


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of a byte string."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one text that stands for a JSON value: sorted keys, no spaces, no NaN."""
    return json_text(value, sort_keys=True, separators=(",", ":"))


def sha256_json(value: Any) -> str:
    """Return the sha256 of a JSON value's canonical text."""
    return sha256_bytes(canonical_json(value).encode())
