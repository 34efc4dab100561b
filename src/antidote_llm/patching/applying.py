"""Makes a patch of new tensor values, puts patches on and takes them off: on a copy, checked by hash."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from antidote_llm.artifacts.files import copy_file
from antidote_llm.artifacts.hashing import sha256_file
from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.tensor_files import DTYPES, TensorEntry, TensorFile, open_tensor_file
from antidote_llm.patching.encodings import Bytes, change_between
from antidote_llm.patching.patch import FileChange, Patch, PatchDescription, TensorRecord

Direction = Literal["apply", "revert"]


def write_patched(
    sources: Mapping[str, TensorFile],
    edited: Mapping[tuple[str, str], Tensor],
    recipe: dict[str, object],
    target: Path,
) -> Patch:
    """Write copies of weight files with some tensors replaced, and return the patch that leads from one to the other.

    Args:
        sources: The files, by name.
        edited: New values by file name and tensor name, in the tensor's own type and shape.
        recipe: What to record as the patch's origin.
        target: The folder that the copies go to.
    """
    files, records, changes = [], [], {}
    for name, source in sources.items():
        keys = [key for file, key in edited if file == name]
        copy_file(source.path, target / name)
        with (target / name).open("r+b") as stream:
            for key in keys:
                entry = source.entries[key]
                before = np.frombuffer(source.read_bytes(key), dtype=np.uint8)
                after = _bits(edited[name, key], entry)
                item_bytes = DTYPES[entry.dtype].itemsize
                change = change_between(before, after, item_bytes)
                if change is None:
                    continue
                stream.seek(entry.begin)
                stream.write(after.tobytes())
                changes[name, key] = change
                records.append(_record(name, entry, item_bytes, change.encoding, int(change.changed().sum())))
        if any(record.file == name for record in records):
            files.append(_file_change(source, target / name))
    description = PatchDescription(recipe=recipe, files=tuple(files), tensors=tuple(records))
    return Patch(description, changes)


def _bits(tensor: Tensor, entry: TensorEntry) -> Bytes:
    if tensor.dtype != DTYPES[entry.dtype] or tuple(tensor.shape) != entry.shape:
        raise DefectError(f"{entry.key}: an edit of another type or shape")
    bits: Bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return bits


def _record(
    file: str, entry: TensorEntry, item_bytes: int, encoding: Literal["zeroed", "xor"], changed: int
) -> TensorRecord:
    return TensorRecord.model_validate(
        {
            "file": file,
            "key": entry.key,
            "dtype": entry.dtype,
            "shape": entry.shape,
            "item_bytes": item_bytes,
            "encoding": encoding,
            "changed": changed,
        }
    )


def _file_change(source: TensorFile, result: Path) -> FileChange:
    return FileChange(
        path=result.name,
        size_bytes=source.size_bytes,
        sha256_before=sha256_file(source.path),
        sha256_after=sha256_file(result),
    )


def transform(patch: Patch, folder: Path, direction: Direction) -> None:
    """Apply or revert a patch in a folder of copies, in place.

    Raises:
        UserError: A file is missing or is not what the patch applies to.
        DefectError: The result's hash is not the one that the patch promises.
    """
    require_matches(patch, folder, direction)
    for file in patch.description.files:
        opened = open_tensor_file(folder / file.path)
        with (folder / file.path).open("r+b") as stream:
            for record in patch.description.tensors:
                if record.file == file.path:
                    _transform_tensor(patch, opened, record, direction, stream)
            stream.flush()
            os.fsync(stream.fileno())
        promised = file.sha256_after if direction == "apply" else file.sha256_before
        if sha256_file(folder / file.path) != promised:
            raise DefectError(f"{file.path}: the result's sha256 is not {promised}: the patch is damaged")


def _transform_tensor(
    patch: Patch, file: TensorFile, record: TensorRecord, direction: Direction, stream: BinaryIO
) -> None:
    entry = file.entries.get(record.key)
    if entry is None or (entry.dtype, entry.shape) != (record.dtype, record.shape):
        raise UserError(f"{file.path}: '{record.key}' is not the tensor that the patch describes: the patch is damaged")
    change = patch.changes[record.file, record.key]
    bits = np.frombuffer(file.read_bytes(record.key), dtype=np.uint8)
    stream.seek(entry.begin)
    stream.write((change.apply(bits) if direction == "apply" else change.revert(bits)).tobytes())


def require_matches(patch: Patch, folder: Path, direction: Direction) -> None:
    """Refuse a folder whose files are not those that the patch applies to (or came out of it).

    Raises:
        UserError: Names the file and what it is instead.
    """
    for file in patch.description.files:
        path = folder / file.path
        if not path.is_file():
            raise UserError(f"{folder}: no {file.path}: the patch is for another model")
        found = sha256_file(path)
        wanted, other = file.sha256_before, file.sha256_after
        if direction == "revert":
            wanted, other = other, wanted
        if found == wanted:
            continue
        if found == other:
            state = "already has this patch" if direction == "apply" else "does not have this patch"
            raise UserError(f"{path} {state}: there is nothing to {direction}")
        raise UserError(f"{path}: the patch is for another model: sha256 is {found[:12]}…, {wanted[:12]}… is wanted")
