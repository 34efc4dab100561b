"""A patch is applied and reverted to exactly the same bytes, and refuses every other file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from antidote_llm.errors import DefectError, UserError
from antidote_llm.io.files import sha256_file
from antidote_llm.patching.apply import require_reverts, transform
from antidote_llm.patching.diff import diff
from antidote_llm.patching.encodings import entries_bytes
from antidote_llm.patching.patch import Patch, read_patch
from tests.patching.making import NAME, patched, write
from tests.patching.whole import Bytes, parts_between

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def awkward(dtype: torch.dtype) -> dict[str, Tensor]:
    """Values whose bits are easily lost: -0.0, subnormals, infinities and NaNs with a payload."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator).to(dtype)
    weight[0, :5] = torch.tensor([-0.0, 0.0, float("inf"), float("nan"), torch.finfo(dtype).tiny / 4]).to(dtype)
    return {"a": weight, "b": torch.randn(3, 2, generator=generator).to(dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [False, True])
def test_apply_and_revert_give_the_same_bytes(tmp_path: Path, dtype: torch.dtype, dense: bool) -> None:
    tensors = awkward(dtype)
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    new = tensors["a"] * 0.5 if dense else tensors["a"].masked_fill(mask, 0)
    source = write(tmp_path / "source", tensors)
    patch = patched(source, tmp_path / "target", {"a": new, "b": tensors["b"]})
    before, after = sha256_file(source / NAME), sha256_file(tmp_path / "target" / NAME)
    assert before != after
    assert [record.key for record in patch.description.tensors] == ["a"]

    require_reverts(patch, tmp_path / "target")
    transform(patch, source, tmp_path / "applied", "apply")
    assert sha256_file(tmp_path / "applied" / NAME) == after
    transform(patch, tmp_path / "applied", tmp_path / "reverted", "revert")
    assert sha256_file(tmp_path / "reverted" / NAME) == before == sha256_file(source / NAME)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=npst.arrays(np.uint8, 56),
    after=npst.arrays(np.uint8, 56),
    dtype=st.sampled_from(DTYPES),
    changed=st.integers(0, 56),
)
def test_any_change_of_bits_is_reversible(
    tmp_path: Path, before: Bytes, after: Bytes, dtype: torch.dtype, changed: int
) -> None:
    after[changed:] = before[changed:]
    values = [torch.from_numpy(bits).view(dtype) for bits in (before, after)]
    source = write(tmp_path / "source", {"a": values[0]})
    patch = patched(source, tmp_path / "target", {"a": values[1]})
    require_reverts(patch, tmp_path / "target")
    assert (tmp_path / "target" / NAME).read_bytes() == (source / NAME).read_bytes()[:-56] + after.tobytes()
    parts = parts_between(before, after, dtype.itemsize)
    assert {name.rsplit("/", 1)[-1] for name in patch.stored.entries} == parts.keys()
    for name in patch.stored.entries:
        assert bytes(patch.stored.read_bytes(name)) == parts[name.rsplit("/", 1)[-1]]
    for record in patch.description.tensors:
        differences = np.concatenate(list(patch.differences(record)))
        assert np.array_equal(differences.view(np.uint8), before ^ after)
        assert record.changed == np.count_nonzero(differences)


def test_a_few_changes_are_stored_as_a_bitmap_and_many_are_compressed(tmp_path: Path) -> None:
    before = torch.arange(1.0, 1001.0)
    removed, negative_zero, moved = before.clone(), before.clone(), before.clone()
    removed[8:12] = 0
    negative_zero[8:12] = -0.0
    moved.view(torch.int32)[:] ^= 1
    source = write(tmp_path / "source", {"a": before})
    for after, encoding in ((removed, "entries"), (negative_zero, "entries"), (moved, "dense")):
        patch = patched(source, tmp_path / "target", {"a": after})
        assert [record.encoding for record in patch.description.tensors] == [encoding]


def test_the_predicted_size_is_exact_for_some_entries_and_a_bound_for_all(tmp_path: Path) -> None:
    def size(after: Tensor) -> int:
        patch = patched(source, tmp_path / "target", {"a": after})
        return sum(len(patch.stored.read_bytes(name)) for name in patch.stored.entries)

    before = torch.from_numpy(np.random.default_rng(0).integers(1, 255, 4 * 1001, dtype=np.uint8)).view(torch.float32)
    source = write(tmp_path / "source", {"a": before})
    removed = before.clone()
    removed[:100] = 0
    assert size(removed) == entries_bytes(1001, 100, 4)
    other = torch.from_numpy(np.random.default_rng(1).integers(1, 255, 4 * 1001, dtype=np.uint8)).view(torch.float32)
    assert size(other) <= entries_bytes(1001, 1001, 4)
    assert size((before.view(torch.int32) ^ 1).view(torch.float32)) < entries_bytes(1001, 1001, 4) / 2


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
        transform(patch, other, tmp_path / "out", "apply")
    with pytest.raises(UserError, match="already has this patch"):
        transform(patch, target, tmp_path / "out", "apply")
    with pytest.raises(UserError, match="does not have this patch"):
        transform(patch, source, tmp_path / "out", "revert")
    with pytest.raises(UserError, match="another model"):
        transform(patch, tmp_path, tmp_path / "out", "apply")


@pytest.mark.parametrize(
    "tensors",
    [{"a": torch.zeros(5, 7), "b": torch.zeros(2, 3)}, {"a": torch.zeros(5, 7), "c": torch.zeros(3, 2)}],
    ids=["turned", "renamed"],
)
def test_a_file_of_the_same_size_and_another_layout_is_refused(
    made: tuple[Path, Path, Patch], tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    other = write(tmp_path / "other", tensors)
    assert (other / NAME).stat().st_size == (made[0] / NAME).stat().st_size
    with pytest.raises(UserError, match="no 'b' as the patch describes it"):
        transform(made[2], other, tmp_path / "out", "apply")


def test_a_patch_with_a_wrong_hash_of_its_result_is_refused(made: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    source, target, patch = made
    file = patch.description.files[0].model_copy(update={"sha256_after": "0" * 64})
    lying = Patch(patch.description.model_copy(update={"files": (file,)}), patch.stored)
    with pytest.raises(UserError, match="damaged"):
        transform(lying, source, tmp_path / "out", "apply")
    require_reverts(patch, target)
    file = patch.description.files[0].model_copy(update={"sha256_before": "0" * 64})
    lying = Patch(patch.description.model_copy(update={"files": (file,)}), patch.stored)
    with pytest.raises(DefectError, match="does not give the bytes back"):
        require_reverts(lying, target)


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_a_truncated_patch_is_refused(made: tuple[Path, Path, Patch], cut: int) -> None:
    path = made[2].stored.path
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"truncated|malformed|lies"):
        read_patch(path)


def test_other_files_are_no_patches(made: tuple[Path, Path, Patch], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a patch"):
        read_patch(made[0] / NAME)
    with pytest.raises(UserError, match="no such patch"):
        read_patch(tmp_path / "nothing")


def test_diff_counts_what_is_shared(tmp_path: Path) -> None:
    tensors = awkward(torch.float32)
    source = write(tmp_path / "source", tensors)
    masks = [torch.tensor([[1, 1], [0, 0], [0, 0]]).bool(), torch.tensor([[0, 1], [1, 1], [0, 0]]).bool()]
    patches = [
        patched(source, tmp_path / f"t{i}", {"b": tensors["b"].masked_fill(mask, i)}) for i, mask in enumerate(masks)
    ]
    (found,) = diff(*patches)
    assert (found.first_only, found.both, found.equal, found.second_only, found.jaccard) == (1, 1, 0, 2, 0.25)
    (same,) = diff(patches[0], patches[0])
    assert (same.first_only, same.both, same.equal, same.second_only, same.jaccard) == (0, 2, 2, 0, 1)


def test_diff_lists_tensors_that_one_patch_alone_changes(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a": torch.ones(4), "b": torch.ones(4)})
    one = patched(source, tmp_path / "one", {"a": torch.tensor([1.0, 0, 0, 1])})
    two = patched(source, tmp_path / "two", {"b": torch.zeros(4)})
    found = [(row.key, row.first_only, row.both, row.second_only, row.jaccard) for row in diff(one, two)]
    assert found == [("a", 2, 0, 0, 0), ("b", 0, 0, 4, 0)]


def test_diff_refuses_patches_for_different_files(tmp_path: Path) -> None:
    edit = {"b": torch.zeros(3, 2)}
    source = write(tmp_path / "source", {"b": torch.ones(3, 2)})
    other = write(tmp_path / "other", {"b": torch.full((3, 2), 2.0)})
    patch = patched(source, tmp_path / "t0", edit)
    with pytest.raises(UserError, match="different models"):
        diff(patch, patched(other, tmp_path / "t1", edit))
    renamed = write(tmp_path / "renamed", {"b": torch.ones(3, 2)}, name="model.safetensors")
    with pytest.raises(UserError, match="no file of the same name"):
        diff(patch, patched(renamed, tmp_path / "t2", edit, name="model.safetensors"))
