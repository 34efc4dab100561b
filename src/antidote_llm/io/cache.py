"""The cache folder, and files of JSON values in it by what was asked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from antidote_llm.errors import UserError
from antidote_llm.io.files import sha256_json
from antidote_llm.io.strict_json import parse_json


def cache_root() -> Path:
    """Return the cache folder: ``$ANTIDOTE_CACHE``, else ``antidote`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("ANTIDOTE_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "antidote"


_log = logging.getLogger(__name__)


class KeptLines:
    """One file of lines below the cache folder: JSON values by what was asked, which is kept as a hash alone.

    Every value is written as soon as it is added, in one piece and with a hash, so that two commands may share the
    file. A cut or damaged line is ignored and its question asked again; a warning says how many.

    Args:
        kind: What is kept, in one word: the name of the folder, and what error messages call it.
        identity: All that the values depend on besides what is asked, as JSON values.
    """

    def __init__(self, kind: str, identity: Mapping[str, Any]) -> None:
        self._kind = kind
        self.path = cache_root() / kind / f"{sha256_json(dict(identity))}.jsonl"
        if self.path.is_symlink():
            raise UserError(f"{self.path} is a link, and {kind} are kept in no other place: remove it")
        self._values, damaged = _read(self.path)
        if damaged:
            _log.warning("%s: damaged lines are asked anew (%d of them)", self.path, damaged)
        self._stream: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def get(self, asked: Any) -> Any:
        """Return the value for a question; None if there is none."""
        return self._values.get(sha256_json(asked))

    def add(self, asked: Any, value: Any) -> None:
        """Keep a value.

        Args:
            asked: The question, as JSON values.
            value: A JSON value, but not null.

        Raises:
            UserError: The cache folder cannot be written.
        """
        key = sha256_json(asked)
        try:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self.path.open("ab", buffering=0)
            _write_whole(self._stream, b"\n" + json.dumps(_line(key, value)).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: {self._kind} cannot be kept there: {error.strerror}: "
                "set ANTIDOTE_CACHE to another folder"
            ) from error
        self._values[key] = value

    def close(self, *, remove: bool = False) -> None:
        """Close the file; ``remove`` also removes it."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if remove:
            self.path.unlink(missing_ok=True)


def _line(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value, "sha256": sha256_json([key, value])}


def _write_whole(stream: IO[bytes], data: bytes) -> None:
    """Write all bytes: a disk that is nearly full takes some of them without an error."""
    while data:
        data = data[stream.write(data) :]


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """Return the values by key, and how many lines are damaged."""
    found: dict[str, Any] = {}
    damaged = 0
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        if not line:
            continue
        try:
            kept = parse_json(line)
            key, value = str(kept["key"]), kept["value"]
            # Lines of earlier versions have no hash.
            wanted = sha256_json([key, value])
            is_sound = kept.get("sha256", wanted) == wanted
        except (ValueError, KeyError, TypeError, AttributeError):
            is_sound = False
        if is_sound:
            found[key] = value
        damaged += not is_sound
    return found, damaged
