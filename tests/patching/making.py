"""Weight files, edits of them, and patches whose parts can be changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from safetensors.torch import save_file
from torch import Tensor

from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.patching.description import SHA256_KEY, UNSEALED, seal
from antidote_llm.patching.patch import METADATA_KEY, PATCH_FILE, Patch, read_patch
from antidote_llm.patching.patched_copies import PatchedCopies

NAME = "adapter_model.safetensors"
Parts = dict[str, Any]


def write(folder: Path, tensors: dict[str, Tensor], name: str = NAME) -> Path:
    """Write one weight file with metadata of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, metadata={"note": "kept"})
    return folder


def patched(
    source: Path, target: Path, edited: Mapping[str, Tensor], recipe: dict[str, object] | None = None, name: str = NAME
) -> Patch:
    """Write the edited file into ``target`` and its patch into ``target``'s ``record`` neighbour."""
    sources = {name: open_tensor_file(source / name)}
    path = target.parent / f"{target.name}-record" / PATCH_FILE
    with PatchedCopies(sources, [(name, key) for key in edited], recipe or {"method": "test"}, target, path) as writer:
        for key, value in edited.items():
            writer.edit(name, key, [value])
        return writer.finish()


def with_description(path: Path, change: Callable[[Parts], Parts]) -> Path:
    """Change a patch file's description in its place."""
    with safetensors.safe_open(path, framework="np") as file:
        description = json.loads(file.metadata()[METADATA_KEY])
    return with_text(path, json.dumps(change(description)))


def with_text(path: Path, text: str) -> Path:
    """Put a text in the place of a patch file's description."""
    return _rewritten(path, text, safetensors.numpy.load_file(path))


def with_parts(path: Path, change: Callable[[Parts], Parts]) -> Path:
    """Change a patch file's tensors in its place."""
    with safetensors.safe_open(path, framework="np") as file:
        text = file.metadata()[METADATA_KEY]
    return _rewritten(path, text, change(safetensors.numpy.load_file(path)))


def _rewritten(path: Path, text: str, parts: Parts) -> Path:
    """Write a patch that holds its own hash, whatever is in it."""
    header: Parts = {"__metadata__": {SHA256_KEY: UNSEALED, METADATA_KEY: text}}
    position = 0
    for name, array in parts.items():
        dtype = {np.dtype(np.uint8): "U8", np.dtype(np.float32): "F32"}[array.dtype]
        place = [position, position := position + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": place}
    raw = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(array.tobytes() for array in parts.values()))
    return sealed(path)


def sealed(path: Path) -> Path:
    """Give a patch the hash of itself, as if it had been written so."""
    with path.open("r+b") as stream:
        seal(stream)
    return path


def read_whole(path: Path) -> Patch:
    """Open a patch and read every change of it."""
    patch = read_patch(path)
    for record in patch.description.tensors:
        for _ in patch.differences(record):
            pass
    return patch


def flipped(path: Path, position: int, *, bit: int = 0) -> Path:
    """Flip a bit of a file in its place."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return path


def older(path: Path) -> Path:
    """Rewrite a patch as format 2 had it: without its own hash, and without files that do not change."""
    with_description(
        path, lambda found: {**{name: found[name] for name in ("recipe", "files", "tensors")}, "format": 2}
    )
    path.write_bytes(path.read_bytes().replace(SHA256_KEY.encode(), b"antidote_patch_SHA256"))
    return path
