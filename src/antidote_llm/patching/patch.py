"""A patch: every change of a checkpoint's files, with the hashes of what it applies to and of what comes out.

It is one safetensors file. Its metadata holds a JSON description under ``antidote_patch``; its tensors are raw bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from antidote_llm.artifacts.files import read_at
from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.tensor_files import TensorFile, open_tensor_file
from antidote_llm.patching.encodings import (
    DamageError,
    Encoding,
    Items,
    Read,
    bitmap_bytes,
    dense_differences,
    entries_differences,
)

METADATA_KEY = "antidote_patch"
PATCH_FILE = "patch.safetensors"
_MEND = ": fetch it again, or repair once more"


class FileChange(BaseModel):
    """One file of the checkpoint, before and after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="The file's name in the checkpoint's folder.", pattern=r"^[^/\\.][^/\\]*$")
    size_bytes: int = Field(ge=0, description="Its size, which a patch does not change.")
    sha256_before: str = Field(description="The hash of what the patch applies to.", pattern=r"^[0-9a-f]{64}$")
    sha256_after: str = Field(description="The hash of what comes out.", pattern=r"^[0-9a-f]{64}$")


class TensorRecord(BaseModel):
    """One tensor that changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="The file that holds it.")
    key: str = Field(description="Its name in that file.")
    dtype: str = Field(description="Its type in that file.")
    shape: tuple[int, ...] = Field(description="Its shape.")
    item_bytes: Literal[1, 2, 4, 8] = Field(description="How many bytes an entry has.")
    encoding: Encoding = Field(description="How its change is kept.")
    changed: int = Field(ge=0, description="How many entries change.")

    @property
    def entries(self) -> int:
        """How many entries the tensor has."""
        return int(np.prod(self.shape, dtype=np.int64))


class PatchDescription(BaseModel):
    """What a patch changes and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = Field(2, description="The format's version.")
    recipe: dict[str, object] = Field(description="Method, target and settings that made it.")
    files: tuple[FileChange, ...] = Field(description="The files that change.")
    tensors: tuple[TensorRecord, ...] = Field(description="The tensors that change.")


@dataclass(frozen=True)
class Patch:
    """A patch on the disk: its description; changes are read one block of a tensor at a time."""

    description: PatchDescription
    stored: TensorFile

    def records(self, file: str) -> dict[str, TensorRecord]:
        """Return the tensors of one file that change, by key."""
        return {record.key: record for record in self.description.tensors if record.file == file}

    def differences(self, record: TensorRecord) -> Iterator[Items]:
        """Yield the bits that flip of one tensor, in blocks of entries, the same blocks in every patch.

        Raises:
            UserError: It is damaged.
        """
        try:
            with self.stored.stream() as stream:
                if record.encoding == "dense":
                    packed, size = self._part(stream, record, "xor")
                    yield from dense_differences(packed, size, record.entries, record.item_bytes)
                else:
                    (bitmap, bitmap_size), (flips, size) = (self._part(stream, record, p) for p in ("bitmap", "flips"))
                    if (bitmap_size, size) != (bitmap_bytes(record.entries), record.changed * record.item_bytes):
                        raise DamageError("holds another number of entries than it says")
                    yield from entries_differences(bitmap, flips, record.entries, record.changed, record.item_bytes)
        except (DamageError, EOFError) as error:
            raise self.damaged(f"'{record.key}' {error}") from error

    def _part(self, stream: IO[bytes], record: TensorRecord, part: str) -> tuple[Read, int]:
        """Return what reads one part, and the part's size."""
        entry = self.stored.entries.get(part_name(record, part))
        if entry is None:
            raise DamageError(f"lacks its {part}")
        if entry.dtype != "U8":
            raise DamageError("is kept as something else than bytes")
        begin = entry.begin
        return lambda offset, size: read_at(stream.fileno(), begin + offset, size), entry.end - begin

    def damaged(self, problem: str) -> UserError:
        """Return the error that says that the patch is not what it was."""
        return UserError(f"{self.stored.path}: a damaged patch: {problem}{_MEND}")


def part_name(record: TensorRecord, part: str) -> str:
    """Return the name of a tensor of the patch file."""
    return f"{record.file}/{record.key}/{part}"


def read_patch(path: Path) -> Patch:
    """Open a patch: the file itself, or the output folder of a repair that holds one.

    Raises:
        UserError: There is none, or it is damaged.
    """
    if path.is_dir():
        path = path / "record" / PATCH_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such patch: name a {PATCH_FILE} or the folder that a repair wrote")
    stored = open_tensor_file(path)
    text = stored.metadata.get(METADATA_KEY)
    if text is None:
        raise UserError(
            f"{path}: not a patch: it has no {METADATA_KEY} entry: name a {PATCH_FILE} or the folder that a repair "
            "wrote"
        )
    try:
        description = PatchDescription.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise UserError(f"{path}: a damaged patch, or one of another version of this program{_MEND}") from error
    named = {file.path for file in description.files}
    if any(record.file not in named for record in description.tensors):
        raise UserError(f"{path}: a damaged patch: it changes a file whose hashes it does not hold{_MEND}")
    return Patch(description, stored)


class PatchWriter:
    """Writes a patch part by part into an open file, whose header is written last.

    Args:
        stream: An empty file.
        recipe: What to record as the patch's origin.
        files: How many files may change.
        tensors: Every tensor that may change, as it would be described at most.
    """

    def __init__(
        self, stream: IO[bytes], recipe: dict[str, object], files: Sequence[str], tensors: Sequence[TensorRecord]
    ) -> None:
        self._stream = stream
        self._recipe = recipe
        self._records: list[TensorRecord] = []
        self._ranges: dict[str, tuple[int, int]] = {}
        self._data_start = header_bytes(recipe, files, tensors)
        stream.write(b"\0" * self._data_start)

    def add(self, record: TensorRecord, sizes: Mapping[str, int], data: Iterable[bytes]) -> None:
        """Write the change of one tensor: parts of known sizes, one after the other."""
        begin = self._stream.tell()
        self._stream.writelines(data)
        self._keep(record, begin, sizes)

    def add_if_smaller(self, record: TensorRecord, part: str, data: Iterable[bytes], limit_bytes: int) -> bool:
        """Write the change of one tensor in one part, or nothing where that is not smaller than a limit."""
        begin = self._stream.tell()
        for piece in data:
            self._stream.write(piece)
            if self._stream.tell() - begin >= limit_bytes:
                self._stream.seek(begin)
                self._stream.truncate()
                return False
        self._keep(record, begin, {part: self._stream.tell() - begin})
        return True

    def _keep(self, record: TensorRecord, begin: int, sizes: Mapping[str, int]) -> None:
        begin -= self._data_start
        for part, size in sizes.items():
            self._ranges[part_name(record, part)] = (begin, begin + size)
            begin += size
        if begin != self._stream.tell() - self._data_start:
            raise DefectError(f"{record.key}: its change takes another size than it said")
        self._records.append(record)

    def finish(self, files: Sequence[FileChange]) -> None:
        """Write the header."""
        description = PatchDescription(recipe=self._recipe, files=tuple(files), tensors=tuple(self._records))
        header = _header(description, self._ranges)
        room = self._data_start - 8
        if len(header) > room:
            raise DefectError(f"the header of a patch takes {len(header)} bytes, {room} were kept free")
        self._stream.seek(0)
        self._stream.write(struct.pack("<Q", room) + header.ljust(room))


def header_bytes(recipe: dict[str, object], files: Sequence[str], tensors: Sequence[TensorRecord]) -> int:
    """Return what a patch takes before its data, where no number in it has more digits than a size can have."""
    longest = [
        FileChange(path=name, size_bytes=1 << 62, sha256_before="0" * 64, sha256_after="0" * 64) for name in files
    ]
    ends = dict.fromkeys((part_name(r, part) for r in tensors for part in ("bitmap", "flips")), (1 << 62, 1 << 62))
    description = PatchDescription(recipe=recipe, files=tuple(longest), tensors=tuple(tensors))
    return len(_header(description, ends)) + 8


def _header(description: PatchDescription, ranges: Mapping[str, tuple[int, int]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: description.model_dump_json()}}
    for name, (begin, end) in ranges.items():
        header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # As the format's own writer, so that the data begins at a multiple of 8 bytes.
    return text.ljust(-(-len(text) // 8) * 8)
