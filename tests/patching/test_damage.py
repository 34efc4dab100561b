"""What is not the patch's file, or no longer the patch, is named, and no bytes are changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from safetensors.torch import save_file

from antidote_llm.errors import UserError
from antidote_llm.models import open_tensor_file
from antidote_llm.patching import Patch, read_patch, transform, write_patched
from antidote_llm.patching.patch import METADATA_KEY

NAME = "adapter_model.safetensors"
Parts = dict[str, Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    save_file({"w": torch.arange(1.0, 13.0).reshape(3, 4)}, tmp_path / "source" / NAME)
    return tmp_path / "source"


@pytest.fixture
def patch(source: Path, tmp_path: Path) -> Patch:
    file = open_tensor_file(source / NAME)
    edited = file.read("w").masked_fill(torch.eye(3, 4).bool(), 0)
    (tmp_path / "target").mkdir()
    return write_patched({NAME: file}, {(NAME, "w"): edited}, {}, tmp_path / "target")


def test_a_transform_of_another_file_changes_nothing(source: Path, patch: Patch, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    save_file({"w": torch.ones(3, 4)}, other / NAME)
    before = (other / NAME).read_bytes()
    for direction in ("apply", "revert"):
        with pytest.raises(UserError, match="another model"):
            transform(patch, other, direction)
    assert (other / NAME).read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda parts: parts | {f"{NAME}/w/old": parts[f"{NAME}/w/old"][:-4]},
        lambda parts: parts | {f"{NAME}/w/bitmap": parts[f"{NAME}/w/bitmap"][:-1]},
        lambda parts: parts | {f"{NAME}/w/bitmap": np.zeros_like(parts[f"{NAME}/w/bitmap"])},
        lambda parts: parts | {f"{NAME}/w/old": parts[f"{NAME}/w/old"].view(np.float32)},
        lambda parts: {f"{NAME}/w/old": parts[f"{NAME}/w/old"]},
    ],
    ids=["old values cut", "bitmap cut", "bitmap empty", "floats for bytes", "no bitmap"],
)
def test_a_patch_whose_parts_do_not_fit_is_refused(
    patch: Patch, tmp_path: Path, damage: Callable[[Parts], Parts]
) -> None:
    path = tmp_path / "patch.safetensors"
    patch.write(path)
    parts = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(damage(parts), path, metadata)
    with pytest.raises(UserError, match="damaged patch"):
        read_patch(path)


@pytest.mark.parametrize("change", [{"format": 2}, {"files": None}, {"more": 1}])
def test_a_description_of_another_form_is_refused(patch: Patch, tmp_path: Path, change: Parts) -> None:
    path = tmp_path / "patch.safetensors"
    patch.write(path)
    description = {**json.loads(patch.description.model_dump_json()), **change}
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, {METADATA_KEY: json.dumps(description)})
    with pytest.raises(UserError, match="damaged patch, or one of a newer version"):
        read_patch(path)
