"""Costly answers that are kept by content as they come: what was asked once is not asked again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from antidote_llm.artifacts.cache import cache_root
from antidote_llm.artifacts.hashing import sha256_json
from antidote_llm.artifacts.json_reading import parse_json
from antidote_llm.errors import UserError


class KeptLines:
    """One file of lines below the cache folder: JSON values by what was asked, which is kept as a hash alone.

    Every value is on the disk as soon as it is added, in one write, so that two commands may share the file. A line
    that was cut counts for nothing: it is asked anew.

    Args:
        kind: What is kept, in one word: the name of the folder, and what error messages call it.
        identity: All that the values depend on besides what is asked, as JSON values.
    """

    def __init__(self, kind: str, identity: Mapping[str, Any]) -> None:
        self._kind = kind
        self.path = cache_root() / kind / f"{sha256_json(dict(identity))}.jsonl"
        self._values = _read(self.path)
        self._stream: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def get(self, asked: Any) -> Any:
        """Return what is kept for a question, None where nothing is."""
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
            self._stream.write(b"\n" + json.dumps({"key": key, "value": value}).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: {self._kind} cannot be kept there: {error.strerror}: "
                "set ANTIDOTE_CACHE to another folder"
            ) from error
        self._values[key] = value

    def close(self, *, remove: bool = False) -> None:
        """Close the file, and remove it where it has served its purpose."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if remove:
            self.path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            kept = parse_json(line)
            found[str(kept["key"])] = kept["value"]
        except (ValueError, KeyError, TypeError):
            continue
    return found
