"""Edits in any order and in any blocks give the files and the patch that whole tensors give, with copies or without."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from antidote_llm.errors import DefectError, UserError
from antidote_llm.io.files import sha256_file
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.patching import encodings
from antidote_llm.patching import patched_copies as writing
from antidote_llm.patching.apply import require_reverts, transform
from antidote_llm.patching.diff import diff
from antidote_llm.patching.patch import Patch, part_name, read_patch
from antidote_llm.patching.patched_copies import EditedCopy, PatchedCopies
from tests.patching.making import NAME, write
from tests.patching.whole import parts_between

SHARDS = ("model-1.safetensors", "model-2.safetensors", "model-3.safetensors")
DTYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float64)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "BLOCK_ENTRIES", 16)
    monkeypatch.setattr(writing, "BLOCK_ENTRIES", 5)


def split(value: Tensor, draw: random.Random) -> Iterator[Tensor]:
    """Cut a tensor into flat blocks of any size, some empty."""
    flat, begin = value.reshape(-1), 0
    while begin < flat.numel():
        end = min(flat.numel(), begin + draw.choice([0, 1, 3, 8, 13, 64]))
        yield flat[begin:end]
        begin = end


def shards(folder: Path, draw: random.Random) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Write shards of random tensors; return values and new values of those that may change."""
    found = {}
    for name in SHARDS:
        tensors = {}
        for key in "dbca":
            generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
            shape = draw.choice([(3, 7), (2, 3, 5), (67,), (1,), (0, 4), ()])
            value = torch.randn(shape, generator=generator).to(draw.choice(DTYPES))
            share = draw.choice([0, 0.1, 0.5, 0.9, 1])
            new = torch.where(torch.rand(shape, generator=generator) < share, value * draw.choice([0, -1, 0.5]), value)
            tensors[key] = value
            if draw.random() < 0.8:
                found[name, key] = (value, new.to(value.dtype))
        write(folder, tensors, name=name)
    return found


def bits(value: Tensor) -> encodings.Bytes:
    return np.frombuffer(value.reshape(-1).view(torch.uint8).numpy().tobytes(), dtype=np.uint8)


def require_as_of_whole_tensors(
    patch: Patch, source: Path, changes: dict[tuple[str, str], tuple[Tensor, Tensor]], folder: Path
) -> None:
    """Compare a patch, part by part and in order, with what whole tensors give; write the edited files."""
    data, tensors = b"", []
    for name in SHARDS:
        content, file = bytearray((source / name).read_bytes()), open_tensor_file(source / name)
        for entry in sorted(file.entries.values(), key=lambda entry: (entry.begin, entry.end)):
            before, after = map(bits, changes.get((name, entry.key), 2 * [torch.zeros(0)]))
            parts = parts_between(before, after, max(1, (entry.end - entry.begin) // max(1, int(np.prod(entry.shape)))))
            if parts:
                tensors.append((name, entry.key))
                content[entry.begin : entry.end] = after.tobytes()
            data += b"".join(parts.values())
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert [(record.file, record.key) for record in patch.description.tensors] == tensors
    stored = patch.stored.path.read_bytes()
    assert stored.endswith(data)
    assert len(stored) - len(data) == min((e.begin for e in patch.stored.entries.values()), default=len(stored))
    for file_change in patch.description.files:
        assert file_change.sha256_before == sha256_file(source / file_change.path)
        assert file_change.sha256_after == sha256_file(folder / file_change.path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), known=st.booleans())
def test_any_order_and_any_blocks_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, known: bool
) -> None:
    draw, place = random.Random(seed), tmp_path_factory.mktemp("writing")
    changes = shards(place / "source", draw)
    files = {name: open_tensor_file(place / "source" / name) for name in SHARDS}
    hashes = {name: sha256_file(place / "source" / name) for name in SHARDS} if known else None
    made = []
    for target in (place / "target", None):
        path = place / f"{target is None}.safetensors"
        order = draw.sample(sorted(changes), len(changes))
        with PatchedCopies(files, sorted(changes), {"by": "test"}, target, path, known_sha256=hashes) as writer:
            for at in order:
                writer.edit(*at, split(changes[at][1], draw))
            made.append(writer.finish())
    require_as_of_whole_tensors(made[0], place / "source", changes, place / "whole")
    for name in SHARDS:
        assert (place / "target" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert made[0].stored.path.read_bytes() == made[1].stored.path.read_bytes()
    assert {path.name for path in place.iterdir()} == {
        *("source", "target", "whole", "True.safetensors", "False.safetensors")
    }
    transform(made[1], place / "source", place / "applied", "apply")
    for change in made[1].description.files:
        assert (place / "applied" / change.path).read_bytes() == (place / "target" / change.path).read_bytes()
    require_reverts(made[0], place / "target")
    assert all(found.both == found.equal and found.jaccard == 1 for found in diff(*made))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", {"a": torch.arange(1.0, 101.0), "b": torch.ones(9)})


def writer_of(source: Path, *, known: dict[str, str] | None = None, copies: bool = True) -> PatchedCopies:
    files = {NAME: open_tensor_file(source / NAME)}
    keys = [(NAME, "a"), (NAME, "b")]
    target = source.parent / "target" if copies else None
    return PatchedCopies(files, keys, {}, target, source.parent / "patch.safetensors", known_sha256=known)


def test_only_what_changed_is_written_into_the_copy(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = torch.arange(1.0, 101.0)
    new[52] = 0
    written: list[tuple[int, int]] = []
    write_into = EditedCopy.write

    def noted(copy: EditedCopy, offset: int, data: memoryview) -> None:
        written.append((offset, data.nbytes))
        write_into(copy, offset, data)

    monkeypatch.setattr(EditedCopy, "write", noted)
    with writer_of(source) as writer:
        writer.edit(NAME, "a", [new])
        writer.edit(NAME, "b", [torch.ones(9)])
        writer.finish()
    assert written == [(open_tensor_file(source / NAME).entries["a"].begin + 200, 20)]


def test_files_that_could_change_and_do_not_are_copied(source: Path) -> None:
    with writer_of(source) as writer:
        writer.edit(NAME, "b", [torch.ones(9)])
        patch = writer.finish()
    assert patch.description.files == ()
    assert (source.parent / "target" / NAME).read_bytes() == (source / NAME).read_bytes()


def test_a_source_is_read_while_its_copy_is_edited(source: Path) -> None:
    file = open_tensor_file(source / NAME)
    with writer_of(source) as writer:
        writer.edit(NAME, "a", (2 * block for block in torch.split(file.read("a"), 7)))
        writer.edit(NAME, "b", (2 * block for block in file.blocks("b")))
        patch = writer.finish()
    require_reverts(patch, source.parent / "target")
    assert (open_tensor_file(source.parent / "target" / NAME).read("b") == 2).all()


@pytest.mark.parametrize(
    "blocks",
    [[], [torch.zeros(99)], [torch.zeros(99), torch.zeros(2)], [torch.zeros(99), torch.zeros(1).half()]],
    ids=["nothing", "too little", "too much", "another type"],
)
def test_blocks_that_are_not_the_tensor_are_our_defect(source: Path, blocks: list[Tensor]) -> None:
    with pytest.raises(DefectError, match="another type or size"), writer_of(source) as writer:
        writer.edit(NAME, "a", blocks)
    assert sorted(path.name for path in source.parent.iterdir() if path.name != "target") == ["source"]


def test_a_tensor_is_edited_once_and_only_where_it_was_named(source: Path) -> None:
    for key in ("a", "c"):
        with pytest.raises(DefectError, match="was edited before, or was not to be"), writer_of(source) as writer:
            writer.edit(NAME, "a", [torch.zeros(100)])
            writer.edit(NAME, key, [torch.zeros(100)])


def test_an_unfinished_patch_does_not_take_its_name(source: Path) -> None:
    with pytest.raises(DefectError, match="not finished"), writer_of(source) as writer:
        writer.edit(NAME, "a", [torch.zeros(100)])
    with pytest.raises(DefectError, match="an edit failed"), writer_of(source) as writer:
        with pytest.raises(DefectError, match="another type or size"):
            writer.edit(NAME, "a", [torch.zeros(99)])
        writer.finish()
    with pytest.raises(KeyboardInterrupt), writer_of(source) as writer:
        writer.edit(NAME, "a", [torch.zeros(100)])
        raise KeyboardInterrupt
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "target"]


@pytest.mark.parametrize("copies", [True, False])
def test_a_source_that_is_removed_or_cut_is_named(source: Path, copies: bool) -> None:
    path = source / NAME
    with pytest.raises(UserError, match=f"{NAME}.* changed"), writer_of(source, copies=copies) as writer:
        os.truncate(path, path.stat().st_size - 8)
        writer.edit(NAME, "a", [torch.zeros(100)])
        writer.edit(NAME, "b", [torch.zeros(9)])
        writer.finish()
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        writer_of(source, copies=copies)


def test_a_source_of_another_hash_is_noticed(source: Path) -> None:
    known = {NAME: "0" * 64}
    with pytest.raises(UserError, match="changed while it was read"), writer_of(source, known=known, copies=False) as w:
        w.edit(NAME, "a", [torch.zeros(100)])
        w.finish()
    with writer_of(source, known=known) as writer:
        writer.edit(NAME, "a", [torch.zeros(100)])
        writer.finish()
    with pytest.raises(DefectError, match="does not give the bytes back"):
        require_reverts(read_patch(source.parent / "patch.safetensors"), source.parent / "target")


def test_a_patch_that_is_cut_while_it_is_read_is_named(source: Path) -> None:
    with writer_of(source) as writer:
        writer.edit(NAME, "a", [torch.cat([torch.zeros(40), torch.arange(41.0, 101.0)])])
        patch = writer.finish()
    os.truncate(patch.stored.path, patch.stored.path.stat().st_size - 8)
    assert part_name(patch.description.tensors[0], "flips") in patch.stored.entries
    with pytest.raises(UserError, match="damaged patch"):
        require_reverts(patch, source.parent / "target")
