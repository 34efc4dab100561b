"""The one codec of safetensors headers: reads them strictly, and writes them. It needs no torch.

The format is eight bytes of header length, a JSON header, and the data (https://github.com/huggingface/safetensors).
What reads values as tensors imports torch when it is called.
"""

from __future__ import annotations

import json
import math
import operator
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from antidote_llm.errors import DefectError, UserError, changed_meanwhile
from antidote_llm.io.strict_json import TwiceError, each_once

if TYPE_CHECKING:
    from torch import Tensor

# The types of weights that can be repaired, and the bytes of one entry.
FLOAT_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_ITEM_BYTES = {**FLOAT_BYTES, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
BLOCK_ENTRIES = 1 << 22
_MOST_HEADER_BYTES = 100_000_000
# The data begins at a multiple of it, as in files of the format's own writer.
_ALIGNMENT = 8
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_LONGEST_SHOWN, _LONGEST_NAME = 200, 10_000


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
        return self._finite_tensor(self._floating(key))

    def blocks(self, key: str) -> Iterator[Tensor]:
        """Yield one floating-point tensor in flat blocks of some millions of entries, read one at a time.

        Raises:
            UserError: As :meth:`read`.
        """
        for block in self._block_ranges(self._floating(key)):
            yield self._finite_tensor(block)

    def holds_the_same(self, key: str, other: TensorFile, other_key: str) -> bool:
        """Whether one tensor is another file's, in type, shape and every bit; neither is read whole."""
        first, second = self.entries[key], other.entries[other_key]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        return all(map(operator.eq, self._raw_blocks(first), other._raw_blocks(second)))

    def _raw_blocks(self, entry: TensorEntry) -> Iterator[bytearray]:
        return map(self._read_range, self._block_ranges(entry))

    def _block_ranges(self, entry: TensorEntry) -> Iterator[TensorEntry]:
        item_bytes = _ITEM_BYTES.get(entry.dtype, 1)
        for begin in range(entry.begin, entry.end, BLOCK_ENTRIES * item_bytes):
            end = min(begin + BLOCK_ENTRIES * item_bytes, entry.end)
            yield TensorEntry(entry.key, entry.dtype, ((end - begin) // item_bytes,), begin, end)

    def _floating(self, key: str) -> TensorEntry:
        entry = self.entries[key]
        if entry.dtype not in FLOAT_BYTES:
            raise UserError(
                f"{self.path}: '{key}' is {entry.dtype}: only floating-point weights can be repaired: use the "
                "checkpoint before quantisation"
            )
        return entry

    def _finite_tensor(self, entry: TensorEntry) -> Tensor:
        from antidote_llm.io.torch_tensors import is_finite

        tensor = self._tensor(entry)
        if not is_finite(tensor):
            raise UserError(
                f"{self.path}: '{entry.key}' holds NaN or infinite values: use a checkpoint from before it broke, or "
                "fetch it again"
            )
        return tensor

    def _tensor(self, entry: TensorEntry) -> Tensor:
        from antidote_llm.io.torch_tensors import bytes_to_tensor

        return bytes_to_tensor(self._read_range(entry), entry)

    def read_row(self, key: str, row: int) -> Tensor:
        """Return one row of a floating-point matrix, as it is in the file."""
        entry = self.entries[key]
        row_bytes = (entry.end - entry.begin) // entry.shape[0]
        begin = entry.begin + row * row_bytes
        return self._tensor(TensorEntry(key, entry.dtype, entry.shape[1:], begin, begin + row_bytes))

    def read_rows(self, key: str, start: int, stop: int, part: int | None = None) -> Tensor:
        """Return consecutive rows of a floating-point matrix, as they are in the file, and read nothing else.

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
        row_bytes = math.prod(row_shape) * FLOAT_BYTES[entry.dtype]
        first = entry.begin + ((part or 0) * rows + start) * row_bytes
        piece = TensorEntry(key, entry.dtype, (stop - start, *row_shape), first, first + (stop - start) * row_bytes)
        return self._finite_tensor(piece)


def open_tensor_file(path: Path) -> TensorFile:
    """Read and check the header of a safetensors file.

    The format's own package judges it: types, shapes and ranges that are whole numbers, fill the file, and follow each
    other. A name that is given twice, is empty or has no end is refused too, which that package accepts.

    Raises:
        UserError: The file is missing or truncated, or its header contradicts itself or the file's size.
    """
    try:
        size = _require_file(path).st_size
        with path.open("rb") as stream:
            prefix = stream.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
            if not 2 <= length <= min(_MOST_HEADER_BYTES, size - _LENGTH.size):
                raise UserError(f"{path}: truncated or not a safetensors file ({size} bytes): fetch it again")
            with safe_open(path, framework="np"):
                raw = stream.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}: check the file and its disk") from error
    except SafetensorError as error:
        raise _unsound(path, size, error) from error
    return TensorFile(path, *_parsed(path, raw, _LENGTH.size + length), size)


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
    return UserError(f"{path}: malformed safetensors header ({reason[:_LONGEST_SHOWN]}): fetch the file again")


def _parsed(path: Path, raw: bytes, data_start: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read a header that the format's package has found sound."""
    try:
        header = json.loads(raw, object_pairs_hook=each_once)
        metadata = dict(header.pop(_METADATA, None) or {})
        entries = {key: _entry(key, value, data_start) for key, value in header.items()}
    except TwiceError as error:
        raise UserError(f"{path}: its header gives a name twice: fetch the file again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise changed_meanwhile(path) from error
    for key in entries:
        if not 0 < len(key) <= _LONGEST_NAME:
            shown = ascii(key[: _LONGEST_SHOWN // 4])
            raise UserError(f"{path}: {shown} is no name of a tensor: save it under another name")
    return entries, metadata


def _entry(key: str, value: Any, data_start: int) -> TensorEntry:
    begin, end = value["data_offsets"]
    return TensorEntry(key, value["dtype"], tuple(value["shape"]), data_start + begin, data_start + end)


def encode_header(
    entries: Iterable[TensorEntry],
    metadata: Mapping[str, str],
    *,
    size_bytes: int | None = None,
    compact: bool = True,
) -> bytes:
    """Return the bytes of a safetensors file before its data: the header's length, the header, and padding.

    Args:
        entries: The tensors, their ranges counted from the start of the data.
        metadata: What is said about the file; it comes first in the header, in the order given.
        size_bytes: The size that was kept free for these bytes; by default the least.
        compact: Whether the header has no spaces between its parts, as of the format's own writer.

    Raises:
        DefectError: The header takes more bytes than were kept free.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    for entry in entries:
        offsets = [entry.begin, entry.end]
        header[entry.key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":") if compact else None).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    room = len(text) if size_bytes is None else size_bytes - _LENGTH.size
    if len(text) > room:
        raise DefectError(f"a safetensors header takes {len(text)} bytes, {room} were kept free")
    return _LENGTH.pack(room) + text.ljust(room)
