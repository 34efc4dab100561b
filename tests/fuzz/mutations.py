"""Ways to damage bytes and JSON values, drawn from a seeded generator."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

# Values that a reader may not expect where another one stood.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", " ", "x", "0", "nan", "../x", "/etc/hostname", "\x00", "\x1b]0;title\x07", "\ud800", "\u202eabc", "é" * 300),
    *([], {}, [[]], {"": ""}, [None], ["x"] * 50, {"a": {"b": {"c": 1}}}),
)
ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\x1b[31m",
    b"\r\n",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"[" * 2000,
    b"9" * 5000,
    b"\xed\xa0\x80",
)


def damaged_bytes(random: Random, data: bytes) -> bytes:
    """Return bytes with one thing changed: a bit, a cut, a piece that is gone, doubled, put in or moved."""

    def flip() -> bytes:
        place = random.randrange(len(data))
        return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]

    def piece() -> tuple[int, int]:
        begin = random.randrange(len(data))
        return begin, min(len(data), begin + random.choice((1, 2, 8, 64, 1000)))

    def gone() -> bytes:
        begin, end = piece()
        return data[:begin] + data[end:]

    def doubled() -> bytes:
        begin, end = piece()
        return data[:end] + data[begin:end] + data[end:]

    def put_in() -> bytes:
        begin, _ = piece()
        return data[:begin] + random.choice(ODD_BYTES) + data[begin:]

    def cut() -> bytes:
        return data[: random.randrange(len(data))]

    if not data:
        return random.choice(ODD_BYTES)
    return random.choice((flip, flip, flip, gone, doubled, put_in, cut))()


def damaged_json(random: Random, value: Any) -> Any:
    """Return a JSON value with one node replaced, dropped, renamed, doubled or nested deeply."""
    nodes = [node for node in _nodes(value) if node is not None]
    parent, key = random.choice(nodes)
    node = parent[key]

    def replace() -> None:
        parent[key] = random.choice(ODD_VALUES)

    def drop() -> None:
        del parent[key]

    def rename() -> None:
        if isinstance(parent, dict):
            parent[random.choice(("", "x", f"{key} ", f"{key}\x1b[0m", "__class__"))] = parent.pop(key)
        else:
            parent.reverse()

    def nest() -> None:
        parent[key] = _nested(node, random.choice((3, 60)))

    def grow() -> None:
        if isinstance(node, list):
            parent[key] = node * random.choice((2, 100))
        elif isinstance(node, str):
            parent[key] = node * random.choice((2, 5000))
        elif isinstance(node, int | float):
            parent[key] = node * random.choice((-1, 2, 1000, 10**12))
        else:
            replace()

    random.choice((replace, replace, replace, drop, rename, nest, grow))()
    return value


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return every place of a JSON value as its parent and its key."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [value]
    while waiting:
        parent = waiting.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent)) if isinstance(parent, list) else ()
        for key in keys:
            found.append((parent, key))
            waiting.append(parent[key])
    return found


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def damaged_text(random: Random, data: bytes) -> bytes:
    """Return a JSON text damaged as a value or as bytes."""
    if random.random() < 0.3:
        return damaged_bytes(random, data)
    value = json.loads(data)
    if not isinstance(value, dict | list) or not value:
        return damaged_bytes(random, data)
    return json.dumps(damaged_json(random, value)).encode("utf-8", "surrogatepass")


def damaged_tensors(random: Random, data: bytes) -> bytes:
    """Return a safetensors file with its JSON header damaged, its length field wrong, or bytes changed."""
    (size,) = struct.unpack("<Q", data[:8])
    if random.random() < 0.4:
        return damaged_bytes(random, data)
    if random.random() < 0.1:
        return struct.pack("<Q", random.choice((0, 1, size - 1, size + 1, 2**32, 2**63, 2**64 - 1))) + data[8:]
    header = damaged_text(random, data[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


Damage = Callable[[Random, bytes], bytes]


def damage_of(name: str) -> Damage:
    """Return the way to damage a file of this name."""
    if name.endswith(".safetensors"):
        return damaged_tensors
    return damaged_text if name.endswith(".json") else damaged_bytes
