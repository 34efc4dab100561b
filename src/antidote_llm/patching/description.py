"""What a patch says about itself: the files and tensors that it changes, and the hash of all its bytes.

The hash is computed with zeros in its place. It comes first in the file's header, so that it is found without parsing
the header.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from antidote_llm.io.safe_paths import is_plain_name, is_plain_path
from antidote_llm.io.safetensors_files import FLOAT_BYTES
from antidote_llm.io.strict_json import each_once, finite, refuse_constant
from antidote_llm.patching.encodings import Encoding

SHA256_KEY = "antidote_patch_sha256"
UNSEALED = "0" * 64
_BEFORE = f'{{"__metadata__":{{"{SHA256_KEY}":"'.encode()
_BEGIN = 8 + len(_BEFORE)
_END = _BEGIN + len(UNSEALED)
_BLOCK_BYTES = 1 << 22


def seal(stream: IO[bytes]) -> str:
    """Write the hash of a file into its header, which holds zeros there, and return it.

    Args:
        stream: The file, opened for writing by a descriptor that also reads.
    """
    stream.flush()
    sha256 = _sha256(stream.fileno())
    stream.seek(_BEGIN)
    stream.write(sha256.encode())
    stream.flush()
    return sha256


def sealed_sha256(path: Path) -> str | None:
    """Return the hash that a file holds of itself, whatever is in its place; None for a file without that place."""
    with path.open("rb") as stream:
        start = stream.read(_END)[8:]
    return start[len(_BEFORE) :].decode(errors="replace") if start.startswith(_BEFORE) else None


def sha256_without_seal(path: Path) -> str:
    """Return the hash of a file with zeros in the place of its own."""
    with path.open("rb") as stream:
        return _sha256(stream.fileno())


def _sha256(handle: int) -> str:
    digest = hashlib.sha256()
    for block in _blocks(handle):
        digest.update(block)
    return digest.hexdigest()


def _blocks(handle: int) -> Iterator[bytes]:
    first = os.pread(handle, _END, 0)
    yield first[:_BEGIN] + UNSEALED.encode()
    position = _END
    while block := os.pread(handle, _BLOCK_BYTES, position):
        yield block
        position += len(block)


OLDEST_FORMAT, NEWEST_FORMAT = 2, 3
_MOST = 2**63 - 1
_MOST_AXES = 64
_MOST_REASON = 120


def _plain_name(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("it names a file elsewhere, or by what is no name")
    return name


def _plain_path(name: str) -> str:
    if not is_plain_path(name):
        raise ValueError("it names a file elsewhere, or by what is no name")
    return name


_Name = Annotated[str, AfterValidator(_plain_name)]
_Path = Annotated[str, AfterValidator(_plain_path)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, le=_MOST)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileChange(_Part):
    """One file of the checkpoint, before and after."""

    path: _Name = Field(description="The file's name in the checkpoint's folder.")
    size_bytes: _Count = Field(description="Its size, which a patch does not change.")
    sha256_before: _Sha256 = Field(description="The hash of what the patch applies to.")
    sha256_after: _Sha256 = Field(description="The hash of what comes out.")


class UnchangedFile(_Part):
    """One file of the checkpoint that is the same before and after."""

    path: _Path = Field(description="The file's name in the checkpoint's folder, folders inside it by /.")
    size_bytes: _Count = Field(description="Its size.")
    sha256: _Sha256 = Field(description="Its hash.")


class TensorRecord(_Part):
    """One tensor that changes."""

    file: str = Field(description="The file that holds it.")
    key: str = Field(description="Its name in that file.")
    dtype: str = Field(description="Its type in that file.")
    shape: tuple[_Count, ...] = Field(description="Its shape.", max_length=_MOST_AXES)
    item_bytes: _Count = Field(description="How many bytes an entry has.")
    encoding: Encoding = Field(description="How its change is kept.")
    changed: _Count = Field(description="How many entries change.")

    @property
    def entries(self) -> int:
        """How many entries the tensor has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What the tensor takes in its file."""
        return self.entries * self.item_bytes

    @model_validator(mode="after")
    def _fits_itself(self) -> TensorRecord:
        if FLOAT_BYTES.get(self.dtype) != self.item_bytes:
            raise ValueError("a tensor of no known type")
        if self.changed > self.entries:
            raise ValueError("more entries of a tensor change than it has")
        return self


class PatchDescription(_Part):
    """What a patch changes and where it came from."""

    format: int = Field(NEWEST_FORMAT, description="The format's version.", ge=OLDEST_FORMAT, le=NEWEST_FORMAT)
    recipe: dict[str, object] = Field(description="Method, target and settings that made it.")
    files: tuple[FileChange, ...] = Field(description="The files that change.")
    unchanged: tuple[UnchangedFile, ...] = Field(
        (), description="The files that ship with them and stay as they are; none are known in format 2."
    )
    tensors: tuple[TensorRecord, ...] = Field(description="The tensors that change.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> PatchDescription:
        if self.format == OLDEST_FORMAT and self.unchanged:
            raise ValueError("format 2 knows nothing of files that do not change")
        _require_once([*(file.path for file in self.files), *(file.path for file in self.unchanged)])
        _require_once(f"{record.file}/{record.key}" for record in self.tensors)
        sizes = {file.path: file.size_bytes for file in self.files}
        for record in self.tensors:
            if record.file not in sizes:
                raise ValueError("it changes a file whose hashes it does not hold")
            sizes[record.file] -= record.size_bytes
        if any(left < 0 for left in sizes.values()):
            raise ValueError("tensors that are larger than their file")
        return self


def parse_description(text: str) -> PatchDescription:
    """Read a description.

    Raises:
        ValueError: It is not one; says why in a few words.
    """
    try:
        # Pydantic's reader knows neither infinite numbers as such nor a key that stands twice.
        json.loads(text, object_pairs_hook=each_once, parse_constant=refuse_constant, parse_float=finite)
        return PatchDescription.model_validate_json(text)
    except RecursionError as error:
        raise ValueError("its description has too many brackets inside each other") from error
    except ValidationError as error:
        raise ValueError(error.errors(include_input=False, include_url=False)[0]["msg"][:_MOST_REASON]) from error


def _require_once(names: Iterable[str]) -> None:
    if any(count > 1 for count in Counter(names).values()):
        raise ValueError("it names a file or a tensor twice")
