"""Applies and reverts patches, block by block, and checks the hashes of what was read and written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from antidote_llm.errors import DefectError, UserError, changed_meanwhile, setting
from antidote_llm.io.safetensors_files import TensorFile, open_tensor_file
from antidote_llm.models.checkpoint_files import is_document
from antidote_llm.patching.description import FileChange
from antidote_llm.patching.encodings import Items, items
from antidote_llm.patching.patch import Patch

_BLOCK_BYTES = 1 << 22


def flipped_pieces(
    file: TensorFile, differences: Mapping[str, Iterable[Items]]
) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Yield all of a file's bytes in order, in blocks: as they are, and with bits flipped.

    Args:
        file: The file.
        differences: By tensor name, the bits that flip, in blocks that make up the tensor.

    Raises:
        UserError: The file ended early.
    """
    # An empty tensor begins where its neighbour does, and comes before it.
    named = sorted((file.entries[key] for key in differences), key=lambda entry: (entry.begin, entry.end))
    with file.stream() as stream:
        for entry in named:
            yield from _plain(stream, entry.begin, file)
            for difference in differences[entry.key]:
                piece = _read(stream, difference.nbytes, file)
                yield piece, (items(piece, difference.itemsize) ^ difference).data.cast("B")
        yield from _plain(stream, file.size_bytes, file)


def _plain(stream: IO[bytes], end: int, file: TensorFile) -> Iterator[tuple[bytes, bytes]]:
    while (position := stream.tell()) < end:
        piece = _read(stream, min(_BLOCK_BYTES, end - position), file)
        yield piece, piece


def _read(stream: IO[bytes], size: int, file: TensorFile) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise changed_meanwhile(file.path)
    return data


@contextmanager
def flushed(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file, and flush it to the disk when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


Direction = Literal["apply", "revert"]
_FIX = ": name the folder that it was made from, or the result"


def transform(patch: Patch, source: Path, target: Path, direction: Direction) -> None:
    """Write the files that a patch changes from one folder to another, changed.

    Raises:
        UserError: A file is missing or is not what the patch applies to (or what came out of it, to revert); or the
            result's hash is not the one that the patch promises.
    """
    for file in patch.description.files:
        before, after = hashlib.sha256(), hashlib.sha256()
        with flushed(target / file.path) as stream:
            for old, new in _pieces(patch, _opened(file, source), file.path):
                before.update(old)
                after.update(new)
                stream.write(new)
        _require_known(file, before.hexdigest(), source, direction)
        promised = file.sha256_after if direction == "apply" else file.sha256_before
        if after.hexdigest() != promised:
            raise patch.damaged(f"{file.path} does not come out with the sha256 that it promises")


def require_fits(patch: Patch, folder: Path) -> None:
    """Refuse a folder whose files have other tensors than those that a patch changes, without reading them.

    Raises:
        UserError: A file is missing, or of another size, or a tensor is missing, or of another type or shape.
    """
    for file in patch.description.files:
        _pieces(patch, _opened(file, folder), file.path)


def require_unchanged_files(patch: Patch, folder: Path, sha256: Mapping[str, str]) -> list[str]:
    """Refuse a folder whose files that a patch leaves as they are, are not those that it knows.

    Documents, which no class reads, may differ. A patch of format 2 knows none of these files.

    Args:
        patch: The patch.
        folder: What it is applied to or reverted on.
        sha256: The hashes of the files that ship from there and that the patch does not change.

    Returns:
        A line about each document that differs, or about a patch without these hashes.

    Raises:
        UserError: Names the first file that is missing, another, or one more than the patch knows.
    """
    if patch.description.format == 2:
        return [
            f"{patch.stored.path} is of format 2, which holds no sha256 of itself nor of files that do not change: "
            f"{len(sha256)} files of {folder} are copied as they are"
        ]
    known = {file.path: file.sha256 for file in patch.description.unchanged}
    remarks = []
    for name in sorted(known.keys() | sha256.keys()):
        if known.get(name) == sha256.get(name):
            continue
        if not is_document(name):
            raise _not_the_known(folder / name, known.get(name), sha256.get(name))
        if name not in sha256:
            remarks.append(f"{folder / name} is not there, as it was when the patch was made")
        else:
            remarks.append(f"{folder / name} is not what it was when the patch was made: it is copied as it is")
    return remarks


def _not_the_known(path: Path, wanted: str | None, found: str | None) -> UserError:
    if found is None:
        return UserError(f"{path}: missing: the patched model has it: fetch it again")
    if wanted is None:
        return UserError(
            f"{path}: a file that the patched model does not have, and that can change what is loaded: remove it, or "
            "put the patch on or off in a folder without it"
        )
    return UserError(
        f"{path}: another file than the patched model has: sha256 is {found[:12]}…, {wanted[:12]}… is wanted: fetch it "
        "again"
    )


def require_reverts(patch: Patch, folder: Path) -> None:
    """Revert a patch on the files of a folder without writing anything, and compare the hashes.

    Raises:
        DefectError: The result is not what the patch was made from.
    """
    for file in patch.description.files:
        reverted = hashlib.sha256()
        for _, new in _pieces(patch, _opened(file, folder), file.path):
            reverted.update(new)
        if reverted.hexdigest() != file.sha256_before:
            raise DefectError(
                f"{file.path}: taking the patch off does not give the bytes back: the disk may be failing"
            )


def _opened(file: FileChange, folder: Path) -> TensorFile:
    path = folder / file.path
    if not path.is_file():
        raise UserError(f"{folder}: no {file.path}: the patch is for another model{_FIX}")
    opened = open_tensor_file(path)
    if opened.size_bytes != file.size_bytes:
        raise UserError(
            f"{path}: the patch is for another model: {opened.size_bytes} bytes, {file.size_bytes} are wanted{_FIX}"
        )
    return opened


def _pieces(patch: Patch, file: TensorFile, name: str) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Return a file's bytes as they are and flipped, piece by piece."""
    records = patch.records(name)
    for record in records.values():
        entry = file.entries.get(record.key)
        if entry is None or (entry.dtype, entry.shape) != (record.dtype, record.shape):
            raise UserError(
                f"{file.path}: no '{record.key}' as the patch describes it: the patch is for another model{_FIX}"
            )
    return flipped_pieces(file, {key: patch.differences(record) for key, record in records.items()})


def _require_known(file: FileChange, found: str, folder: Path, direction: Direction) -> None:
    wanted, other = file.sha256_before, file.sha256_after
    if direction == "revert":
        wanted, other = other, wanted
    if found == other:
        state = "already has this patch" if direction == "apply" else "does not have this patch"
        raise UserError(
            f"{folder / file.path} {state}: there is nothing to {direction}: name another {setting('onto')}"
        )
    if found != wanted:
        raise UserError(
            f"{folder / file.path}: the patch is for another model: sha256 is {found[:12]}…, {wanted[:12]}… is "
            f"wanted{_FIX}"
        )
