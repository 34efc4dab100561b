"""A damaged patch, or one of another file, is named, and no bytes are changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from antidote_llm.errors import UserError
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.patching.apply import Direction, transform
from antidote_llm.patching.description import SHA256_KEY
from antidote_llm.patching.diff import diff
from antidote_llm.patching.patch import Patch, read_patch
from tests.patching.making import (
    NAME,
    Parts,
    flipped,
    older,
    patched,
    read_whole,
    with_description,
    with_parts,
    with_text,
    write,
)

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


ELSEWHERE = ("../x", "/x", "..\\x", "a/../x", "./x", ".x", "", "a\0x", "a\nx", "\x1b[2Jx", "\udc80", "a" * 300)


@pytest.mark.parametrize("path", [*ELSEWHERE, "inside/x"])
def test_a_patch_cannot_change_a_file_elsewhere(patch: Patch, path: str) -> None:
    damaged = with_description(
        patch.stored.path, lambda found: {**found, "files": [{**found["files"][0], "path": path}]}
    )
    with pytest.raises(UserError, match="damaged"):
        read_patch(damaged)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_patch_cannot_know_a_file_elsewhere(patch: Patch, path: str) -> None:
    known = {"path": path, "size_bytes": 1, "sha256": "0" * 64}
    with pytest.raises(UserError, match="damaged"):
        read_patch(with_description(patch.stored.path, lambda found: {**found, "unchanged": [known]}))
    known["path"] = "inside/x"
    read_patch(with_description(patch.stored.path, lambda found: {**found, "unchanged": [known]}))


def test_every_bit_of_a_patch_is_covered_by_its_own_hash(patch: Patch) -> None:
    path = patch.stored.path
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped(path, position, bit=position % 8)
        with pytest.raises(UserError) as raised:
            read_patch(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
        # The first thing in the file is its hash: all that is behind that, and the length before it, is compared.
        before_it = 8 <= position < whole.index(b"antidote_patch_sha256") + len("antidote_patch_sha256") + 3
        assert before_it or "damaged patch" in str(raised.value)
        path.write_bytes(whole)
    assert read_patch(path).sha256 is not None


def test_a_patch_that_lost_its_hash_is_refused(patch: Patch) -> None:
    path = patch.stored.path
    path.write_bytes(path.read_bytes().replace(SHA256_KEY.encode(), b"antidote_patch_SHA256"))
    with pytest.raises(UserError, match="lost the sha256"):
        read_patch(path)


def changed_file(**changes: object) -> Parts:
    hashes = {"sha256_before": "0" * 64, "sha256_after": "1" * 64}
    return {"files": [{"path": NAME, "size_bytes": 200, **hashes, **changes}]}


def changed_tensor(**changes: object) -> Parts:
    record = {"file": NAME, "key": "w", "dtype": "F32", "shape": [3, 4], "item_bytes": 4, "encoding": "entries"}
    return {"tensors": [{**record, "changed": 3, **changes}]}


FILE, TENSOR = changed_file(), changed_tensor()
DESCRIPTIONS: dict[str, Parts] = {
    "no file": {"files": [], "tensors": []},
    "a recipe of another kind": {"recipe": []},
    "a file twice": {"files": [*FILE["files"], *FILE["files"]]},
    "a file that changes and does not": {"unchanged": [{"path": NAME, "size_bytes": 1, "sha256": "0" * 64}]},
    "a tensor twice": {"tensors": [*TENSOR["tensors"], *TENSOR["tensors"]]},
    "a hash too short": changed_file(sha256_after="0" * 63),
    "a hash with a line end": changed_file(sha256_after="0" * 64 + "\n"),
    "a hash in capitals": changed_file(sha256_after="A" * 64),
    "a hash that is a number": changed_file(sha256_before=0),
    "a size below zero": changed_file(size_bytes=-1),
    "a size without an end": changed_file(size_bytes=2**63),
    "a size of a half": changed_file(size_bytes=200.5),
    "a size of a whole number as a float": changed_file(size_bytes=200.0),
    "a size of true": changed_file(size_bytes=True),
    "a size of text": changed_file(size_bytes="200"),
    "a file smaller than its tensors": changed_file(size_bytes=40),
    "a shape without an end": changed_tensor(shape=[10**30]),
    "a shape of many sides": changed_tensor(shape=[2**62, 2**62]),
    "a shape of too many axes": changed_tensor(shape=[3, 4] + [1] * 63),
    "a shape below zero": changed_tensor(shape=[-3, -4]),
    "a shape of floats": changed_tensor(shape=[3.0, 4.0]),
    "a shape of bools": changed_tensor(shape=[True, 12]),
    "a shape of text": changed_tensor(shape="34"),
    "no shape": changed_tensor(shape=None),
    "more changes than entries": changed_tensor(changed=13),
    "changes below zero": changed_tensor(changed=-1),
    "a number of changes that is true": changed_tensor(changed=True),
    "another width": changed_tensor(item_bytes=8),
    "a width of true": changed_tensor(item_bytes=True),
    "a width of a float": changed_tensor(item_bytes=4.0),
    "no known type": changed_tensor(dtype="F33"),
    "no known encoding": changed_tensor(encoding="pickle"),
    "a field too many": changed_tensor(run="zorbik"),
    "another number of changes": changed_tensor(changed=2),
    "another file": changed_tensor(file="other.safetensors"),
    "an older format with what it does not know": {
        "format": 2,
        "unchanged": [{"path": "x", "size_bytes": 1, "sha256": "0" * 64}],
    },
    "a format of a float": {"format": 3.0},
    "a format of true": {"format": True},
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_description_that_cannot_be_true_is_refused(patch: Patch, kind: str) -> None:
    # Without the one thing, it is read.
    path = with_description(patch.stored.path, lambda found: {**found, **FILE, **TENSOR})
    read_patch(path)
    with_description(path, lambda found: {**found, **DESCRIPTIONS[kind]})
    with pytest.raises(UserError, match="damaged patch") as raised:
        read_patch(path)
    assert len(str(raised.value)) < len(str(path)) + 300 and "\n" not in str(raised.value)


DEEP = "[" * 100_000 + "]" * 100_000
REST = '"files": [], "tensors": [], "unchanged": [{"path": "x", "size_bytes": 1, "sha256": "' + "0" * 64 + '"}]}'
TEXTS = {
    "deep": DEEP,
    "open": "[" * 100_000,
    "deep in the recipe": '{"recipe": {"a": ' + DEEP + "}, " + REST,
    "deeper than one of two readers goes": '{"recipe": {"a": ' + "[" * 500 + "]" * 500 + "}, " + REST,
    "not a number": '{"recipe": {"a": NaN}, ' + REST,
    "infinity": '{"recipe": {"a": -Infinity}, ' + REST,
    "infinity by its exponent": '{"recipe": {"a": 1e999}, ' + REST,
    "a number too long": '{"recipe": {"a": ' + "1" * 5000 + "}, " + REST,
    "a name twice": '{"recipe": {}, "recipe": {}, ' + REST,
    "half a character": '{"recipe": {"a": "\\ud800"}, ' + REST,
    "nothing": "",
    "null": "null",
    "a list": "[]",
}


def without_parts(patch: Patch) -> Path:
    return with_parts(patch.stored.path, lambda _: {})


def test_the_same_texts_without_their_fault_are_read(patch: Patch) -> None:
    read_patch(with_text(without_parts(patch), '{"recipe": {"a": [1.5, {}]}, ' + REST))


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_description_is_refused(patch: Patch, kind: str) -> None:
    path = with_text(without_parts(patch), TEXTS[kind])
    with pytest.raises(UserError, match="damaged patch") as raised:
        read_patch(path)
    assert len(str(raised.value)) < len(str(path)) + 300 and "\n" not in str(raised.value)


def test_a_part_that_is_not_described_is_refused(patch: Patch) -> None:
    path = with_parts(patch.stored.path, lambda parts: parts | {"more": np.zeros(3, np.uint8)})
    with pytest.raises(UserError, match="does not describe"):
        read_patch(path)


def test_a_change_that_claims_more_than_it_can_inflate_to_is_refused(patch: Patch) -> None:
    path = with_parts(patch.stored.path, lambda _: {XOR: np.zeros(100, np.uint8)})
    claim = changed_file(size_bytes=2**50) | changed_tensor(encoding="dense", shape=[2**40])
    with pytest.raises(UserError, match="another size than it says"):
        read_patch(with_description(path, lambda found: {**found, **claim}))


def test_bytes_after_a_dense_change_are_refused(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide", {"w": torch.zeros(64, 64)})
    patch = patched(wide, tmp_path / "ones", {"w": torch.ones(64, 64)})
    with pytest.raises(UserError, match="another size than it says"):
        read_whole(with_parts(patch.stored.path, lambda parts: {XOR: np.append(parts[XOR], np.zeros(9, np.uint8))}))


def test_two_patches_that_do_not_agree_on_a_tensor_are_not_compared(patch: Patch, tmp_path: Path) -> None:
    other = Path(shutil.copy(patch.stored.path, tmp_path / "other.safetensors"))
    with_description(other, lambda found: {**found, "tensors": [{**found["tensors"][0], "shape": [4, 3]}]})
    with pytest.raises(UserError, match="do not agree on what 'w'"):
        diff(patch, read_patch(other))


def test_a_patch_of_the_format_before_can_be_reverted(source: Path, patch: Patch, tmp_path: Path) -> None:
    old = read_patch(older(patch.stored.path))
    assert old.sha256 is None and old.description.unchanged == ()
    transform(old, tmp_path / "target", tmp_path / "reverted", "revert")
    assert (tmp_path / "reverted" / NAME).read_bytes() == (source / NAME).read_bytes()


def test_a_patch_of_the_format_before_that_names_no_file_is_refused(patch: Patch) -> None:
    path = with_description(without_parts(patch), lambda found: {**found, "files": [], "tensors": []})
    with pytest.raises(UserError, match="names no file"):
        read_patch(older(path))


def test_a_patch_that_changes_a_file_without_hashes_is_refused(patch: Patch) -> None:
    path = with_description(patch.stored.path, lambda description: {**description, "files": []})
    with pytest.raises(UserError, match=r"damaged patch.*hashes"):
        read_patch(path)
