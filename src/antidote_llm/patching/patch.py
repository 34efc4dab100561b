"""A patch: every change of a checkpoint's files, and the hashes of what it applies to, what comes out and itself.

It is one safetensors file. Its metadata holds its own hash under ``antidote_patch_sha256`` and a JSON description under
``antidote_patch``; its tensors are raw bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from antidote_llm.errors import DefectError, UserError
from antidote_llm.io.files import read_at
from antidote_llm.io.safe_paths import require_inside
from antidote_llm.io.safetensors_files import TensorEntry, TensorFile, encode_header, open_tensor_file
from antidote_llm.patching.description import (
    SHA256_KEY,
    UNSEALED,
    FileChange,
    PatchDescription,
    TensorRecord,
    UnchangedFile,
    parse_description,
    seal,
    sealed_sha256,
    sha256_without_seal,
)
from antidote_llm.patching.encodings import (
    DamageError,
    Items,
    Read,
    bitmap_bytes,
    dense_differences,
    entries_differences,
    most_inflated_bytes,
)

METADATA_KEY = "antidote_patch"
PATCH_FILE = "patch.safetensors"
_FIX = ": fetch it again, or repair once more"


@dataclass(frozen=True)
class Patch:
    """A patch on the disk; its changes are read one block of a tensor at a time.

    Attributes:
        description: What it changes.
        stored: The file.
        sha256: The hash that it holds of itself; None in format 2, which holds none.
    """

    description: PatchDescription
    stored: TensorFile
    sha256: str | None = None

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
        begin, size = self._entry(record, part)
        return lambda offset, count: read_at(stream.fileno(), begin + offset, count), size

    def _entry(self, record: TensorRecord, part: str) -> tuple[int, int]:
        """Return where one part begins, and its size."""
        entry = self.stored.entries.get(part_name(record, part))
        if entry is None:
            raise DamageError(f"lacks its {part}")
        if entry.dtype != "U8":
            raise DamageError("is kept as something else than bytes")
        return entry.begin, entry.end - entry.begin

    def require_parts(self) -> None:
        """Refuse a patch that holds other parts than it describes, or more than a part of that size can hold.

        Raises:
            UserError: It is damaged.
        """
        described: set[str] = set()
        for record in self.description.tensors:
            sizes = self._sizes(record)
            described.update(part_name(record, part) for part in sizes)
            if record.encoding == "dense":
                if record.size_bytes > most_inflated_bytes(sizes["xor"]):
                    raise self.damaged(f"'{record.key}' has another size than it says")
            elif sizes != {"bitmap": bitmap_bytes(record.entries), "flips": record.changed * record.item_bytes}:
                raise self.damaged(f"'{record.key}' holds another number of entries than it says")
        if self.stored.entries.keys() != described:
            raise self.damaged("it holds something that it does not describe")

    def _sizes(self, record: TensorRecord) -> dict[str, int]:
        parts = ("xor",) if record.encoding == "dense" else ("bitmap", "flips")
        try:
            return {part: self._entry(record, part)[1] for part in parts}
        except DamageError as error:
            raise self.damaged(f"'{record.key}' {error}") from error

    def damaged(self, problem: str) -> UserError:
        """Return the error that says that the patch is not what it was."""
        return _damaged(self.stored.path, problem)


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: a damaged patch: {problem}{_FIX}")


def part_name(record: TensorRecord, part: str) -> str:
    """Return the name of a tensor of the patch file."""
    return f"{record.file}/{record.key}/{part}"


def read_patch(path: str | Path) -> Patch:
    """Open a patch: the file itself, or the output folder of a repair that holds one.

    Raises:
        UserError: There is no patch, or a byte of it has changed.
    """
    path = Path(path)
    if path.is_dir():
        path = require_inside(path, f"record/{PATCH_FILE}")
    if not path.is_file():
        raise UserError(f"{path}: no such patch: name a {PATCH_FILE} or the folder that a repair wrote")
    sha256 = sealed_sha256(path)
    if sha256 is not None and sha256 != sha256_without_seal(path):
        raise _damaged(path, "its bytes do not have the sha256 that it holds of itself")
    patch = written_patch(path)
    patch.require_parts()
    return patch


def written_patch(path: Path) -> Patch:
    """Open a patch that has just been written, without going through all its bytes once more.

    Raises:
        UserError: It has changed since.
    """
    stored, sha256 = open_tensor_file(path), sealed_sha256(path)
    text = stored.metadata.get(METADATA_KEY)
    if text is None:
        raise UserError(
            f"{path}: not a patch: it has no {METADATA_KEY} entry: name a {PATCH_FILE} or the folder that a repair "
            "wrote"
        )
    try:
        description = parse_description(text)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: a damaged patch, or one of another version of this program ({error}){_FIX}"
        ) from error
    patch = Patch(description, stored, sha256)
    if not (description.files or description.unchanged):
        raise patch.damaged("it names no file")
    if sha256 is None and description.format > 2:
        raise patch.damaged("it has lost the sha256 that it held of itself")
    return patch


class PatchWriter:
    """Writes a patch part by part into an open file, whose header is written last.

    Args:
        stream: An empty file.
        recipe: What to record as the patch's origin.
        files: How many files may change.
        tensors: Every tensor that may change, as it would be described at most.
        unchanged: The files that ship and cannot change.
    """

    def __init__(
        self,
        stream: IO[bytes],
        recipe: dict[str, object],
        files: Sequence[str],
        tensors: Sequence[TensorRecord],
        unchanged: Sequence[UnchangedFile] = (),
    ) -> None:
        self._stream = stream
        self._recipe = recipe
        self._records: list[TensorRecord] = []
        self._ranges: dict[str, tuple[int, int]] = {}
        self._data_start = header_bytes(recipe, files, tensors, unchanged)
        stream.write(b"\0" * self._data_start)

    def add(self, record: TensorRecord, sizes: Mapping[str, int], data: Iterable[bytes]) -> None:
        """Write the change of one tensor: parts of known sizes, one after the other."""
        begin = self._stream.tell()
        self._stream.writelines(data)
        self._keep(record, begin, sizes)

    def add_if_smaller(self, record: TensorRecord, part: str, data: Iterable[bytes], limit_bytes: int) -> bool:
        """Write the change of one tensor in one part, unless that is not smaller than a limit."""
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

    def finish(self, files: Sequence[FileChange], unchanged: Sequence[UnchangedFile] = ()) -> None:
        """Write the header and the hash of the whole."""
        description = PatchDescription(
            recipe=self._recipe, files=tuple(files), unchanged=tuple(unchanged), tensors=tuple(self._records)
        )
        header = _header(description, self._ranges, self._data_start)
        self._stream.seek(0)
        self._stream.write(header)
        seal(self._stream)


def header_bytes(
    recipe: dict[str, object],
    files: Sequence[str],
    tensors: Sequence[TensorRecord],
    unchanged: Sequence[UnchangedFile] = (),
) -> int:
    """Return what a patch takes before its data, where no number in it has more digits than a size can have."""
    longest = [
        FileChange(path=name, size_bytes=1 << 62, sha256_before="0" * 64, sha256_after="0" * 64) for name in files
    ]
    ends = dict.fromkeys((part_name(r, part) for r in tensors for part in ("bitmap", "flips")), (1 << 62, 1 << 62))
    description = PatchDescription(
        recipe=recipe, files=tuple(longest), unchanged=tuple(unchanged), tensors=tuple(tensors)
    )
    return len(_header(description, ends))


def _header(
    description: PatchDescription, ranges: Mapping[str, tuple[int, int]], size_bytes: int | None = None
) -> bytes:
    """Return what comes before a patch's data: the hash of the file first, at the place where it is written later."""
    metadata = {SHA256_KEY: UNSEALED, METADATA_KEY: description.model_dump_json()}
    entries = (TensorEntry(name, "U8", (end - begin,), begin, end) for name, (begin, end) in ranges.items())
    return encode_header(entries, metadata, size_bytes=size_bytes)
