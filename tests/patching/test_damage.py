"""What is not the patch's file, or no longer the patch, is named, and no bytes are changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from antidote_llm.errors import UserError
from antidote_llm.models import open_tensor_file
from antidote_llm.patching import Patch, read_patch, transform
from antidote_llm.patching.applying import Direction
from tests.patching.making import NAME, Parts, patched, read_whole, with_description, with_parts, write

BITMAP, FLIPS, XOR = (f"{NAME}/w/{part}" for part in ("bitmap", "flips", "xor"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", {"w": torch.arange(1.0, 13.0).reshape(3, 4)})


@pytest.fixture
def patch(source: Path, tmp_path: Path) -> Patch:
    edited = open_tensor_file(source / NAME).read("w").masked_fill(torch.eye(3, 4).bool(), 0)
    return patched(source, tmp_path / "target", {"w": edited})


@pytest.fixture
def dense(source: Path, tmp_path: Path) -> Patch:
    return patched(source, tmp_path / "dense", {"w": torch.arange(2.0, 14.0).reshape(3, 4)})


@pytest.mark.parametrize("direction", ["apply", "revert"])
def test_a_transform_of_another_file_changes_nothing(patch: Patch, tmp_path: Path, direction: Direction) -> None:
    other = write(tmp_path / "other", {"w": torch.ones(3, 4)})
    before = (other / NAME).read_bytes()
    with pytest.raises(UserError, match="another model"):
        transform(patch, other, tmp_path / "out", direction)
    assert (other / NAME).read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda parts: parts | {FLIPS: parts[FLIPS][:-4]},
        lambda parts: parts | {BITMAP: parts[BITMAP][:-1]},
        lambda parts: parts | {BITMAP: np.zeros_like(parts[BITMAP])},
        lambda parts: parts | {FLIPS: parts[FLIPS].view(np.float32)},
        lambda parts: {FLIPS: parts[FLIPS]},
        lambda parts: {BITMAP: parts[BITMAP]},
    ],
    ids=["flips cut", "bitmap cut", "bitmap empty", "floats for bytes", "no bitmap", "no flips"],
)
def test_a_patch_whose_parts_do_not_fit_is_refused(
    source: Path, patch: Patch, tmp_path: Path, damage: Callable[[Parts], Parts]
) -> None:
    with pytest.raises(UserError, match="damaged patch"):
        transform(read_patch(with_parts(patch.stored.path, damage)), source, tmp_path / "out", "apply")


@pytest.mark.parametrize(
    "damage",
    [
        lambda parts: {XOR: parts[XOR][:-5]},
        lambda parts: {XOR: np.zeros(0, np.uint8)},
        lambda parts: {XOR: parts[XOR] ^ 255},
        lambda parts: {},
    ],
    ids=["cut", "empty", "flipped", "gone"],
)
def test_a_dense_change_that_does_not_inflate_is_refused(
    source: Path, tmp_path: Path, damage: Callable[[Parts], Parts]
) -> None:
    wide = write(tmp_path / "wide", {"w": torch.zeros(64, 64)})
    patch = patched(wide, tmp_path / "ones", {"w": torch.ones(64, 64)})
    assert [record.encoding for record in patch.description.tensors] == ["dense"]
    with pytest.raises(UserError, match="damaged"):
        read_whole(with_parts(patch.stored.path, damage))


def test_a_dense_change_of_another_size_is_refused(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide", {"w": torch.zeros(64, 64)})
    patch = patched(wide, tmp_path / "ones", {"w": torch.ones(64, 64)})

    def narrower(description: Parts) -> Parts:
        return {**description, "tensors": [{**description["tensors"][0], "shape": [64, 63], "changed": 4000}]}

    with pytest.raises(UserError, match="another size"):
        read_whole(with_description(patch.stored.path, narrower))


@pytest.mark.parametrize("change", [{"format": 1}, {"format": 4}, {"files": None}, {"more": 1}])
def test_a_description_of_another_form_is_refused(patch: Patch, change: Parts) -> None:
    path = with_description(patch.stored.path, lambda description: {**description, **change})
    with pytest.raises(UserError, match="damaged patch, or one of another version"):
        read_patch(path)


@pytest.mark.parametrize("path", ["../elsewhere.safetensors", "/elsewhere.safetensors", "..\\elsewhere.safetensors"])
def test_a_patch_cannot_name_a_file_elsewhere(patch: Patch, path: str) -> None:
    damaged = with_description(
        patch.stored.path, lambda found: {**found, "files": [{**found["files"][0], "path": path}]}
    )
    with pytest.raises(UserError, match="damaged"):
        read_patch(damaged)


def test_a_patch_that_changes_a_file_without_hashes_is_refused(patch: Patch) -> None:
    path = with_description(patch.stored.path, lambda description: {**description, "files": []})
    with pytest.raises(UserError, match=r"damaged patch.*hashes"):
        read_patch(path)
