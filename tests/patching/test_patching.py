"""A patch goes on and comes off to exactly the same bytes, and refuses everything that it is not for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.torch import save_file
from torch import Tensor

from antidote_llm.artifacts import sha256_file
from antidote_llm.errors import DefectError, UserError
from antidote_llm.models import open_tensor_file
from antidote_llm.patching import Patch, diff, predicted_bytes, read_patch, require_matches, transform, write_patched
from antidote_llm.patching.encodings import Bytes, Xored, Zeroed, change_between

NAME = "adapter_model.safetensors"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def awkward(dtype: torch.dtype) -> dict[str, Tensor]:
    """Values whose bits are easily lost: -0.0, subnormals, infinities and NaNs with a payload."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator).to(dtype)
    weight[0, :5] = torch.tensor([-0.0, 0.0, float("inf"), float("nan"), torch.finfo(dtype).tiny / 4]).to(dtype)
    return {"a": weight, "b": torch.randn(3, 2, generator=generator).to(dtype)}


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / NAME, metadata={"format": "pt", "note": "kept"})
    return folder


def patched(source: Path, target: Path, edited: dict[str, Tensor]) -> Patch:
    target.mkdir(parents=True, exist_ok=True)
    file = open_tensor_file(source / NAME)
    return write_patched(
        {NAME: file}, {(NAME, key): value for key, value in edited.items()}, {"method": "test"}, target
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [False, True])
def test_apply_and_revert_give_the_same_bytes(tmp_path: Path, dtype: torch.dtype, dense: bool) -> None:
    tensors = awkward(dtype)
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    new = tensors["a"] * 0.5 if dense else tensors["a"].masked_fill(mask, 0)
    source = write(tmp_path / "source", tensors)
    patch = patched(source, tmp_path / "target", {"a": new, "b": tensors["b"]})
    patch.write(tmp_path / "patch.safetensors")
    patch = read_patch(tmp_path / "patch.safetensors")
    before, after = sha256_file(source / NAME), sha256_file(tmp_path / "target" / NAME)
    assert before != after
    assert [record.key for record in patch.description.tensors] == ["a"]

    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    transform(patch, copy, "apply")
    assert sha256_file(copy / NAME) == after
    transform(patch, copy, "revert")
    assert sha256_file(copy / NAME) == before


@given(before=npst.arrays(np.uint8, 24), after=npst.arrays(np.uint8, 24), item_bytes=st.sampled_from([1, 2, 4, 8]))
def test_any_change_of_bits_is_reversible(before: Bytes, after: Bytes, item_bytes: int) -> None:
    change = change_between(before, after, item_bytes)
    if change is None:
        assert np.array_equal(before, after)
    else:
        assert np.array_equal(change.apply(before), after)
        assert np.array_equal(change.revert(after), before)
        assert int(change.changed().sum()) == (before != after).reshape(-1, item_bytes).any(axis=1).sum()


def test_removed_entries_are_kept_as_a_bitmap_and_dense_edits_as_xor() -> None:
    before = np.arange(1, 33, dtype=np.uint8)
    removed, negative_zero = before.copy(), before.copy()
    removed[8:12] = 0
    negative_zero[8:12] = (0, 0, 0, 128)
    assert isinstance(change_between(before, removed, 4), Zeroed)
    assert isinstance(change_between(before, negative_zero, 4), Xored)


def test_the_predicted_size_is_exact_for_removed_entries_and_a_bound_for_dense_edits() -> None:
    before = np.random.default_rng(0).integers(1, 255, 4 * 1001, dtype=np.uint8)
    removed = before.copy()
    removed[: 4 * 100] = 0
    change = change_between(before, removed, 4)
    assert change is not None
    assert sum(map(len, change.parts().values())) == predicted_bytes(1001, 100, 4, zeroed=True)
    dense = change_between(before, np.random.default_rng(1).integers(1, 255, 4 * 1001, dtype=np.uint8), 4)
    assert dense is not None
    assert sum(map(len, dense.parts().values())) <= predicted_bytes(1001, 1001, 4, zeroed=False)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path, Patch]:
    tensors = awkward(torch.float32)
    source = write(tmp_path / "source", tensors)
    patch = patched(
        source, tmp_path / "target", {"b": tensors["b"].masked_fill(torch.tensor([[1, 0], [0, 1], [0, 0]]).bool(), 0)}
    )
    return source, tmp_path / "target", patch


def test_a_patch_for_another_model_is_refused(made: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    source, target, patch = made
    other = write(tmp_path / "other", {key: value + 1 for key, value in awkward(torch.float32).items()})
    with pytest.raises(UserError, match="another model"):
        require_matches(patch, other, "apply")
    with pytest.raises(UserError, match="already has this patch"):
        require_matches(patch, target, "apply")
    with pytest.raises(UserError, match="does not have this patch"):
        require_matches(patch, source, "revert")
    with pytest.raises(UserError, match="another model"):
        require_matches(patch, tmp_path, "apply")


def test_a_patch_that_lies_about_its_result_is_found_out(made: tuple[Path, Path, Patch]) -> None:
    source, _, patch = made
    file = patch.description.files[0].model_copy(update={"sha256_after": "0" * 64})
    lying = Patch(patch.description.model_copy(update={"files": (file,)}), patch.changes)
    with pytest.raises(DefectError, match="damaged"):
        transform(lying, source, "apply")


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_a_truncated_patch_is_refused(made: tuple[Path, Path, Patch], tmp_path: Path, cut: int) -> None:
    path = tmp_path / "patch.safetensors"
    made[2].write(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"truncated|malformed|lies"):
        read_patch(path)


def test_other_files_are_no_patches(made: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a patch"):
        read_patch(made[0] / NAME)
    with pytest.raises(UserError, match="no such patch"):
        read_patch(tmp_path / "nothing")


def test_a_path_outside_the_folder_is_refused(made: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    patch = made[2]
    file = patch.description.files[0].model_copy(update={"path": "../elsewhere.safetensors"})
    Patch(patch.description.model_copy(update={"files": (file,)}), patch.changes).write(tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="damaged"):
        read_patch(tmp_path / "p.safetensors")


def test_diff_counts_what_is_shared(tmp_path: Path) -> None:
    tensors = awkward(torch.float32)
    source = write(tmp_path / "source", tensors)
    masks = [torch.tensor([[1, 1], [0, 0], [0, 0]]).bool(), torch.tensor([[0, 1], [1, 1], [0, 0]]).bool()]
    patches = [
        patched(source, tmp_path / f"t{i}", {"b": tensors["b"].masked_fill(mask, 0)}) for i, mask in enumerate(masks)
    ]
    (found,) = diff(*patches)
    assert (found.first_only, found.both, found.second_only, found.jaccard) == (1, 1, 2, 0.25)
    other = write(tmp_path / "other", {"b": tensors["b"] + 1})
    with pytest.raises(UserError, match="different models"):
        diff(patches[0], patched(other, tmp_path / "t2", {"b": torch.zeros(3, 2)}))
