"""A patch: every change of a checkpoint's files, with the hashes of what it applies to and of what comes out.

It is one safetensors file. Its metadata holds a JSON description under ``antidote_patch``; its tensors are raw bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from antidote_llm.artifacts.files import write_bytes
from antidote_llm.errors import UserError
from antidote_llm.models.tensor_files import open_tensor_file
from antidote_llm.patching.encodings import Bytes, Encoding, TensorChange, Xored, Zeroed

METADATA_KEY = "antidote_patch"


class FileChange(BaseModel):
    """One file of the checkpoint, before and after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="The file's name, relative to the checkpoint's folder.", pattern=r"^[^/\\]+$")
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

    format: Literal[1] = Field(1, description="The format's version.")
    recipe: dict[str, object] = Field(description="Method, target and settings that made it.")
    files: tuple[FileChange, ...] = Field(description="The files that change.")
    tensors: tuple[TensorRecord, ...] = Field(description="The tensors that change.")


@dataclass(frozen=True)
class Patch:
    """A patch in memory: its description, and the change of every tensor by file and key."""

    description: PatchDescription
    changes: Mapping[tuple[str, str], TensorChange]

    def write(self, path: Path) -> None:
        """Write the patch atomically."""
        tensors = {
            f"{record.file}/{record.key}/{part}": data
            for record in self.description.tensors
            for part, data in self.changes[record.file, record.key].parts().items()
        }
        metadata = {METADATA_KEY: self.description.model_dump_json()}
        write_bytes(path, safetensors.numpy.save(tensors, metadata))


def read_patch(path: Path) -> Patch:
    """Read a patch: the file itself, or the output folder of a repair that holds one.

    Raises:
        UserError: There is none, or it is damaged.
    """
    if path.is_dir():
        path = path / "record" / "patch.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such patch: name a patch.safetensors or the folder that a repair wrote")
    file = open_tensor_file(path)
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        raise UserError(f"{path}: not a patch: it has no {METADATA_KEY} entry")
    try:
        description = PatchDescription.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise UserError(f"{path}: a damaged patch, or one of a newer version of this program") from error
    try:
        stored = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: a damaged patch: {error}") from error
    if any(data.dtype != np.uint8 for data in stored.values()):
        raise UserError(f"{path}: a damaged patch: it holds something else than bytes")
    changes = {}
    for record in description.tensors:
        prefix = f"{record.file}/{record.key}/"
        parts = {name.removeprefix(prefix): data for name, data in stored.items() if name.startswith(prefix)}
        changes[record.file, record.key] = _change(record, parts, path)
    return Patch(description, changes)


def _change(record: TensorRecord, parts: Mapping[str, Bytes], path: Path) -> TensorChange:
    try:
        if record.encoding == "xor":
            return Xored(parts["xor"], record.entries, record.item_bytes)
        change = Zeroed(parts["bitmap"], parts["old"], record.entries, record.item_bytes)
    except KeyError as error:
        raise UserError(f"{path}: a damaged patch: '{record.key}' lacks its {error}") from error
    sizes = (len(change.bitmap), len(change.old), int(change.changed().sum()))
    if sizes != (-(-record.entries // 8), record.changed * record.item_bytes, record.changed):
        raise UserError(f"{path}: a damaged patch: '{record.key}' holds another number of entries than it says")
    return change
