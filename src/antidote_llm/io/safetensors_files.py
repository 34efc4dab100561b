"""The layout of a safetensors file, read strictly: header, names, types, shapes and byte ranges.

The format is eight bytes of header length, a JSON header, and the data (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import operator
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from antidote_llm.errors import DefectError, UserError, changed_meanwhile
from antidote_llm.io.strict_json import TwiceError, each_once

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_SUM_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_BLOCK_ENTRIES = 1 << 22
_MOST_HEADER_BYTES = 100_000_000
# A longer reason is no line that anybody reads, and a longer name no tensor's.
_MOST_SHOWN, _LONGEST_NAME = 200, 10_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its type, shape and the range of bytes that it fills, counted from the file's start."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header has been checked against its size."""

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    size_bytes: int

    def stream(self) -> BufferedReader:
        """Open the file for reading.

        Raises:
            UserError: It is not there any more.
        """
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UserError(
                f"{self.path} changed while it was read ({error.strerror}): wait until nothing writes there, and run "
                "again"
            ) from error

    def read_bytes(self, key: str) -> bytearray:
        """Return the raw bytes of one tensor."""
        return self._read_range(self.entries[key])

    def _read_range(self, entry: TensorEntry) -> bytearray:
        with self.stream() as stream:
            stream.seek(entry.begin)
            data = bytearray(entry.end - entry.begin)
            if stream.readinto(data) != len(data):
                raise changed_meanwhile(self.path)
        return data

    def read(self, key: str) -> Tensor:
        """Return one floating-point tensor in the file's own type.

        Raises:
            UserError: The tensor's type is not a floating-point type, or a value is NaN or infinite.
        """
        return self._require_finite(bytes_to_tensor(self.read_bytes(key), self._floating(key)), key)

    def blocks(self, key: str) -> Iterator[Tensor]:
        """Yield one floating-point tensor in flat blocks of some millions of entries, read one at a time.

        Raises:
            UserError: As :meth:`read`.
        """
        dtype = self._floating(key).dtype
        for data in self._raw_blocks(key):
            part = TensorEntry(key, dtype, (len(data) // DTYPES[dtype].itemsize,), 0, len(data))
            yield self._require_finite(bytes_to_tensor(data, part), key)

    def holds_the_same(self, key: str, other: TensorFile, other_key: str) -> bool:
        """Whether one tensor is another file's, in type, shape and every bit; neither is read whole."""
        first, second = self.entries[key], other.entries[other_key]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        return all(map(operator.eq, self._raw_blocks(key), other._raw_blocks(other_key)))

    def _raw_blocks(self, key: str) -> Iterator[bytearray]:
        entry = self.entries[key]
        step = _BLOCK_ENTRIES * _ITEM_BYTES.get(entry.dtype, 1)
        for begin in range(entry.begin, entry.end, step):
            yield self._read_range(TensorEntry(key, entry.dtype, (), begin, min(begin + step, entry.end)))

    def _floating(self, key: str) -> TensorEntry:
        entry = self.entries[key]
        if entry.dtype not in DTYPES:
            raise UserError(
                f"{self.path}: '{key}' is {entry.dtype}: only floating-point weights can be repaired: use the "
                "checkpoint before quantisation"
            )
        return entry

    def _require_finite(self, tensor: Tensor, key: str) -> Tensor:
        if not all(map(_is_finite, flat_blocks(tensor))):
            raise UserError(
                f"{self.path}: '{key}' holds NaN or infinite values: use a checkpoint from before it broke, or "
                "fetch it again"
            )
        return tensor

    def read_row(self, key: str, row: int) -> Tensor:
        """Return one row of a floating-point matrix, as it lies in the file."""
        entry = self.entries[key]
        row_bytes = (entry.end - entry.begin) // entry.shape[0]
        begin = entry.begin + row * row_bytes
        part = TensorEntry(key, entry.dtype, entry.shape[1:], begin, begin + row_bytes)
        return bytes_to_tensor(self._read_range(part), part)

    def read_rows(self, key: str, start: int, stop: int, part: int | None = None) -> Tensor:
        """Return consecutive rows of a floating-point matrix, as they lie in the file, and read nothing else.

        Args:
            key: Which tensor.
            start: The first row.
            stop: The row after the last one.
            part: Which slice along the first axis the rows are of, where the tensor is a stack of matrices.

        Raises:
            UserError: As :meth:`read`.
        """
        entry = self._floating(key)
        rows, *row_shape = entry.shape if part is None else entry.shape[1:]
        if not 0 <= start <= stop <= rows or (part is not None and not 0 <= part < entry.shape[0]):
            raise DefectError(f"{self.path}: '{key}' has no rows {start} to {stop} (part {part}): {entry.shape}")
        row_bytes = math.prod(row_shape) * DTYPES[entry.dtype].itemsize
        first = entry.begin + ((part or 0) * rows + start) * row_bytes
        piece = TensorEntry(key, entry.dtype, (stop - start, *row_shape), first, first + (stop - start) * row_bytes)
        return self._require_finite(bytes_to_tensor(self._read_range(piece), piece), key)


def flat_blocks(values: Tensor) -> tuple[Tensor, ...]:
    """View a tensor as flat blocks of some millions of entries, so that what is computed from each stays small."""
    return torch.split(values.reshape(-1), _BLOCK_ENTRIES)


def _is_finite(block: Tensor) -> bool:
    # A sum is many times faster than looking at every value, and finite only if they all are.
    total = float(block.sum(dtype=_SUM_DTYPES.get(block.dtype)))
    return math.isfinite(total) or bool(torch.isfinite(block).all())


def bytes_to_tensor(data: bytearray, entry: TensorEntry) -> Tensor:
    """View raw little-endian bytes as the tensor that ``entry`` describes."""
    if not data:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def open_tensor_file(path: Path) -> TensorFile:
    """Read and check the header of a safetensors file.

    The format's own package judges it: types, shapes and ranges that are whole numbers, fill the file, and lie behind
    each other. What it lets pass and nobody writes, a name given twice, an empty or an endless one, is refused too.

    Raises:
        UserError: The file is missing or truncated, or its header contradicts itself or the file's size.
    """
    try:
        size = _require_file(path).st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
                raise UserError(f"{path}: truncated or not a safetensors file ({size} bytes): fetch it again")
            with safe_open(path, framework="np"):
                raw = stream.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}: check the file and its disk") from error
    except SafetensorError as error:
        raise _unsound(path, size, error) from error
    return TensorFile(path, *_parsed(path, raw, 8 + length), size)


def _require_file(path: Path) -> os.stat_result:
    """Return what is known of a file; a pipe or a device would be waited for without an end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: not a file: name a safetensors file")
    return found


def _unsound(path: Path, size: int, error: SafetensorError) -> UserError:
    reason = str(error).removeprefix("Error while deserializing header: ")
    if "not fully covered" in reason:
        return UserError(f"{path}: truncated, or longer than its header says ({size} bytes): fetch the file again")
    return UserError(f"{path}: malformed safetensors header ({reason[:_MOST_SHOWN]}): fetch the file again")


def _parsed(path: Path, raw: bytes, data_start: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read a header that the format's package has found sound."""
    try:
        header = json.loads(raw, object_pairs_hook=each_once)
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = {key: _entry(key, value, data_start) for key, value in header.items()}
    except TwiceError as error:
        raise UserError(f"{path}: its header gives a name twice: fetch the file again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise changed_meanwhile(path) from error
    for key in entries:
        if not 0 < len(key) <= _LONGEST_NAME:
            shown = ascii(key[: _MOST_SHOWN // 4])
            raise UserError(f"{path}: {shown} is no name of a tensor: save it under another name")
    return entries, metadata


def _entry(key: str, value: Any, data_start: int) -> TensorEntry:
    begin, end = value["data_offsets"]
    return TensorEntry(key, value["dtype"], tuple(value["shape"]), data_start + begin, data_start + end)
