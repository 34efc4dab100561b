"""Writes copies of weight files with some tensors changed, and the patch, with one block of entries in memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import BufferedReader, FileIO
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from antidote_llm.errors import DefectError, changed_meanwhile
from antidote_llm.io.files import atomic_writer, clone_content, read_at, sha256_file, write_at
from antidote_llm.io.safetensors_files import FLOAT_BYTES, TensorEntry, TensorFile
from antidote_llm.io.torch_tensors import FLOAT_DTYPES, tensor_bytes
from antidote_llm.patching.apply import flipped_pieces
from antidote_llm.patching.description import FileChange, TensorRecord, UnchangedFile
from antidote_llm.patching.encodings import (
    BLOCK_ENTRIES,
    Items,
    bitmap_bytes,
    entries_bytes,
    entries_differences,
    items,
    packed_planes,
)
from antidote_llm.patching.patch import Patch, PatchWriter, header_bytes, written_patch

_BLOCK_BYTES = 1 << 20


class SpooledChange:
    """The change of one tensor, at one place of a scratch file: the packed bitmap, then the flips.

    Args:
        handle: The scratch file, opened for reading and writing.
        begin: Where the change goes.
        entries: How many entries the tensor has.
        item_bytes: How many bytes an entry has.
    """

    def __init__(self, handle: int, begin: int, entries: int, item_bytes: int) -> None:
        self.entries, self.item_bytes = entries, item_bytes
        self.changed = 0
        self._handle, self._begin = handle, begin
        self._flips_begin = begin + bitmap_bytes(entries)
        self._bitmap_end = begin
        # The bits that do not fill a byte yet.
        self._bits: npt.NDArray[np.bool_] = np.zeros(0, dtype=bool)

    @property
    def size_bytes(self) -> int:
        """What it takes in the scratch file, and in a patch."""
        return entries_bytes(self.entries, self.changed, self.item_bytes)

    @property
    def end(self) -> int:
        """Where the next change may begin."""
        return self._begin + self.size_bytes

    def add(self, before: Items, after: Items) -> bool:
        """Keep how the next entries change, any number of them; return whether they do."""
        flips = before ^ after
        differs = flips != 0
        # By index: a mask costs a mispredicted branch at every entry.
        found = flips.take(np.flatnonzero(differs))
        write_at(self._handle, found.data, self._flips_begin + self.changed * self.item_bytes)
        self.changed += len(found)
        bits = np.concatenate([self._bits, differs]) if len(self._bits) else differs
        whole = len(bits) // 8 * 8
        self._write_bits(bits[:whole])
        self._bits = bits[whole:].copy()
        return len(found) > 0

    def close(self) -> None:
        """Keep the last bits: nothing follows."""
        self._write_bits(self._bits)

    def _write_bits(self, bits: npt.NDArray[np.bool_]) -> None:
        packed = np.packbits(bits)
        write_at(self._handle, packed.data, self._bitmap_end)
        self._bitmap_end += len(packed)

    def pieces(self) -> Iterator[bytes]:
        """Yield bitmap and flips as they are stored."""
        for begin in range(self._begin, self.end, _BLOCK_BYTES):
            yield read_at(self._handle, begin, min(_BLOCK_BYTES, self.end - begin))

    def differences(self) -> Iterator[Items]:
        """Yield the bits that flip, in blocks of entries."""
        return entries_differences(
            lambda offset, size: read_at(self._handle, self._begin + offset, size),
            lambda offset, size: read_at(self._handle, self._flips_begin + offset, size),
            self.entries,
            self.changed,
            self.item_bytes,
        )


class EditedCopy:
    """Reads a weight file, and writes into its copy, which is made when it is first written to.

    Args:
        source: The file.
        target: The copy; without it nothing is written.
    """

    def __init__(self, source: TensorFile, target: Path | None) -> None:
        self.source, self.target = source, target
        self._reader: BufferedReader | None = None
        self._writer: FileIO | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file.

        Raises:
            UserError: It is gone, or ended early.
        """
        try:
            return read_at(self._opened().fileno(), offset, size)
        except EOFError as error:
            raise changed_meanwhile(self.source.path) from error

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of the copy.

        Raises:
            UserError: The file is gone, or changed while it was copied.
        """
        if self.target is not None:
            write_at(self._copied(self.target).fileno(), data, offset)

    def flush(self) -> None:
        """Make the copy if it is missing, flush it to the disk, and close both files.

        Raises:
            UserError: As :meth:`write`.
        """
        if self.target is not None:
            os.fsync(self._copied(self.target).fileno())
        self.close()

    def close(self) -> None:
        """Close both files."""
        for stream in (self._reader, self._writer):
            if stream is not None:
                stream.close()
        self._reader = self._writer = None

    def _opened(self) -> BufferedReader:
        if self._reader is None:
            self._reader = self.source.stream()
        return self._reader

    def _copied(self, target: Path) -> FileIO:
        if self._writer is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._writer = target.open("wb", buffering=0)
            clone_content(self._opened(), self._writer)
            if os.fstat(self._writer.fileno()).st_size != self.source.size_bytes:
                raise changed_meanwhile(self.source.path)
        return self._writer


# The hash of a file before, and after.
_Hashes: TypeAlias = tuple[str, str]


class PatchedCopies:
    """Writes copies of weight files with some tensors changed, and the patch.

    Tensors come in any order, each in blocks; memory holds one block. A file is copied when the first of its entries
    changes, or at the end, and edited in place; it is hashed and flushed by another thread as soon as everything that
    may change in it has been given. Until the patch is written, a scratch file next to it takes as much space again.
    The patch takes its name in :meth:`finish`; copies that are not finished are left to the caller.

    Args:
        sources: The files that may change, by name.
        keys: Everything that may change, by file name and tensor name.
        recipe: What to record as the patch's origin.
        target: The folder that the copies go to; without it, only the patch is written.
        patch_path: Where the patch goes.
        known_sha256: Hashes of sources by name, where they are known already. Whether they still hold is checked by
            :func:`antidote_llm.patching.apply.require_reverts`; without copies, here.
        unchanged: The files that ship with them and are none of them: the patch knows their hashes too.
    """

    def __init__(
        self,
        sources: Mapping[str, TensorFile],
        keys: Collection[tuple[str, str]],
        recipe: dict[str, object],
        target: Path | None,
        patch_path: Path,
        *,
        known_sha256: Mapping[str, str] | None = None,
        unchanged: Sequence[UnchangedFile] = (),
    ) -> None:
        self._unchanged = tuple(unchanged)
        self._sources, self._recipe, self._patch_path = sources, recipe, patch_path
        self._known = known_sha256 or {}
        self._possible = _possible(sources, keys)
        self._copies = {name: EditedCopy(file, target and target / name) for name, file in sources.items()}
        self._waiting = {name: {key for file, key in keys if file == name} for name in sources}
        self._changes: dict[str, dict[str, SpooledChange]] = {name: {} for name in sources}
        self._hashes: dict[str, Future[_Hashes]] = {}
        self._flushes: dict[str, Future[None]] = {}
        self._spooled_bytes = 0
        self._sound, self._finished = True, False

    def __enter__(self) -> PatchedCopies:
        with ExitStack() as stack:
            stream = stack.enter_context(atomic_writer(self._patch_path))
            scratch = tempfile.TemporaryFile(dir=self._patch_path.parent, buffering=0)
            self._scratch = stack.enter_context(scratch).fileno()
            for copy in self._copies.values():
                stack.callback(copy.close)
            self._pool = ThreadPoolExecutor(2, thread_name_prefix="hash")
            stack.callback(self._pool.shutdown, cancel_futures=True)
            self._writer = PatchWriter(stream, self._recipe, list(self._sources), self._possible, self._unchanged)
            self._unfinished = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self._finished:
            error = DefectError(f"{self._patch_path}: the patch was not finished")
            self._unfinished.__exit__(DefectError, error, None)
            raise error
        self._unfinished.__exit__(kind, error, trace)

    def edit(self, file: str, key: str, blocks: Iterable[Tensor]) -> None:
        """Give one tensor's new values.

        Args:
            file: The name of the file.
            key: The name of the tensor, which can be given only once.
            blocks: Consecutive pieces of the tensor, each of any shape, in the file's own type and order of entries.
                They are written over what they replace only in the copy: the source can still be read.

        Raises:
            UserError: The source is gone or was cut, or the disk has no room.
            DefectError: The blocks have another type than the tensor, or are not the whole of it.
        """
        if key not in self._waiting[file]:
            raise DefectError(f"{file}: '{key}' was edited before, or was not to be edited")
        self._waiting[file].remove(key)
        self._sound = False
        entry, copy = self._sources[file].entries[key], self._copies[file]
        item_bytes = FLOAT_BYTES[entry.dtype]
        change = SpooledChange(self._scratch, self._spooled_bytes, (entry.end - entry.begin) // item_bytes, item_bytes)
        position = entry.begin
        for after in _pieces(entry, blocks):
            before = items(copy.read(position, after.nbytes), item_bytes)
            if change.add(before, after):
                copy.write(position, after.data)
            position += after.nbytes
        change.close()
        if change.changed:
            self._changes[file][key] = change
            self._spooled_bytes = change.end
        if not self._waiting[file]:
            self._complete(file)
        self._sound = True

    def finish(self) -> Patch:
        """Write what is left to write, and return the patch."""
        if not self._sound:
            raise DefectError(f"{self._patch_path}: an edit failed: the patch would lack it")
        for name in self._sources:
            if name not in self._flushes:
                self._complete(name)
        for name, source in self._sources.items():
            changes = self._changes[name]
            for key in sorted(changes, key=lambda key: source.entries[key].begin):
                self._add(name, source.entries[key], changes[key])
        for flush in self._flushes.values():
            flush.result()
        changed = [self._file_change(name) for name in self._sources if self._changes[name]]
        same = [self._same_file(name) for name in self._sources if not self._changes[name]]
        self._writer.finish(changed, sorted([*same, *self._unchanged], key=lambda file: file.path))
        self._finished = True
        self._unfinished.close()
        return written_patch(self._patch_path)

    def _complete(self, name: str) -> None:
        """Flush and hash a file's copy in another thread: it does not change any more."""
        source, copy, changes = self._sources[name], self._copies[name], self._changes[name]
        if changes and copy.target is not None:
            self._hashes[name] = self._pool.submit(_hashes_of_both, source, copy.target, self._known.get(name))
        elif changes:
            self._hashes[name] = self._pool.submit(_hashes_without_copy, source, changes, self._known.get(name))
        self._flushes[name] = self._pool.submit(copy.flush)

    def _add(self, name: str, entry: TensorEntry, change: SpooledChange) -> None:
        """Write the change of one tensor into the patch, in the smaller of its two forms."""
        record = _record(name, entry, change.changed)
        if change.changed > change.entries // 2:
            packed = packed_planes(change.differences, change.item_bytes)
            dense = record.model_copy(update={"encoding": "dense"})
            if self._writer.add_if_smaller(dense, "xor", packed, change.size_bytes):
                return
        bitmap = bitmap_bytes(change.entries)
        self._writer.add(record, {"bitmap": bitmap, "flips": change.size_bytes - bitmap}, change.pieces())

    def _file_change(self, name: str) -> FileChange:
        before, after = self._hashes[name].result()
        return FileChange(
            path=name, size_bytes=self._sources[name].size_bytes, sha256_before=before, sha256_after=after
        )

    def _same_file(self, name: str) -> UnchangedFile:
        source = self._sources[name]
        sha256 = self._known.get(name) or _sha256(piece for piece, _ in flipped_pieces(source, {}))
        return UnchangedFile(path=name, size_bytes=source.size_bytes, sha256=sha256)


def predicted_header_bytes(
    sources: Mapping[str, TensorFile],
    keys: Collection[tuple[str, str]],
    recipe: dict[str, object],
    unchanged: Sequence[UnchangedFile] = (),
) -> int:
    """Return what :class:`PatchedCopies` takes for a patch's header, whatever of it changes."""
    return header_bytes(recipe, list(sources), _possible(sources, keys), unchanged)


def _possible(sources: Mapping[str, TensorFile], keys: Collection[tuple[str, str]]) -> list[TensorRecord]:
    entries = ((file, sources[file].entries[key]) for file, key in keys)
    return [_record(file, entry, (entry.end - entry.begin) // FLOAT_BYTES[entry.dtype]) for file, entry in entries]


def _record(file: str, entry: TensorEntry, changed: int) -> TensorRecord:
    return TensorRecord.model_validate(
        {
            "file": file,
            "key": entry.key,
            "dtype": entry.dtype,
            "shape": entry.shape,
            "item_bytes": FLOAT_BYTES[entry.dtype],
            "encoding": "entries",
            "changed": changed,
        }
    )


def _pieces(entry: TensorEntry, blocks: Iterable[Tensor]) -> Iterator[Items]:
    """Cut blocks into pieces that stay in a processor's cache, and see that they are the whole tensor."""
    dtype, item_bytes = FLOAT_DTYPES[entry.dtype], FLOAT_BYTES[entry.dtype]
    left = (entry.end - entry.begin) // item_bytes
    for block in blocks:
        left -= block.numel()
        if block.dtype != dtype or left < 0:
            break
        values = items(tensor_bytes(block.detach().cpu()), item_bytes)
        yield from (values[begin : begin + BLOCK_ENTRIES] for begin in range(0, len(values), BLOCK_ENTRIES))
    else:
        if left == 0:
            return
    raise DefectError(f"{entry.key}: an edit of another type or size")


def _hashes_of_both(source: TensorFile, copy: Path, known: str | None) -> _Hashes:
    return known or _sha256(piece for piece, _ in flipped_pieces(source, {})), sha256_file(copy)


def _hashes_without_copy(source: TensorFile, changes: Mapping[str, SpooledChange], known: str | None) -> _Hashes:
    """Return a file's hashes before and after, by taking its bytes through the changes."""
    before, after = hashlib.sha256(), hashlib.sha256()
    for old, new in flipped_pieces(source, {key: change.differences() for key, change in changes.items()}):
        before.update(old)
        after.update(new)
    if known is not None and before.hexdigest() != known:
        raise changed_meanwhile(source.path)
    return before.hexdigest(), after.hexdigest()


def _sha256(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
