"""One pass over a file gives what editing it in memory gives, whatever it holds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from antidote_llm.errors import DefectError
from antidote_llm.io.files import sha256_file
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.patching import apply as streaming_module
from antidote_llm.patching.apply import require_reverts, transform
from antidote_llm.patching.patch import METADATA_KEY, part_name, read_patch
from antidote_llm.patching.patched_copies import PatchedCopies
from tests.patching.making import NAME, patched, write
from tests.patching.whole import parts_between


def many() -> dict[str, Tensor]:
    """Tensors of every kind that checkpoints hold, some empty, some no weights."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {
        f"layers.{i}.weight": torch.randn(3 + i % 4, 5, generator=generator) for i in range(40)
    }
    tensors |= {f"half.{i}": torch.randn(7, generator=generator).bfloat16() for i in range(10)}
    tensors |= {"ids": torch.arange(11), "flags": torch.tensor([True, False, True]), "one": torch.tensor(3.0)}
    return tensors | {f"empty.{i}": torch.zeros(0, 4) for i in range(3)} | {"z.empty": torch.zeros(0)}


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value * 0.5 if key.endswith(".weight") else value * 1 for key, value in tensors.items()}


def edited_keys(tensors: dict[str, Tensor]) -> list[str]:
    return [key for index, key in enumerate(tensors) if tensors[key].is_floating_point() and index % 3 != 1]


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 22])
def test_streaming_equals_editing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(streaming_module, "_BLOCK_BYTES", block_bytes)
    tensors = many()
    changed = {key: tensors[key] * 0.5 for key in edited_keys(tensors)}
    source = write(tmp_path / "source", tensors)
    patch = patched(source, tmp_path / "target", changed)
    in_memory = write(tmp_path / "in memory", {**tensors, **changed})
    assert sha256_file(tmp_path / "target" / NAME) == sha256_file(in_memory / NAME)
    assert open_tensor_file(tmp_path / "target" / NAME).metadata == {"note": "kept"}
    assert [r.key for r in patch.description.tensors if "empty" in r.key] == []
    require_reverts(patch, tmp_path / "target")
    transform(patch, tmp_path / "target", tmp_path / "reverted", "revert")
    assert (tmp_path / "reverted" / NAME).read_bytes() == (source / NAME).read_bytes()


def rewritten_header(path: Path, names: list[str]) -> None:
    """List a file's tensors in another order; the data stays where it is."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    raw = json.dumps({name: header[name] for name in ["__metadata__", *names]}, separators=(",", ":")).encode()
    path.write_bytes(data[:8] + raw.ljust(length) + data[8 + length :])


def test_an_empty_tensor_may_be_listed_anywhere(tmp_path: Path) -> None:
    # An empty tensor begins where its neighbour begins: the order of the two is only in the header.
    tensors = {"a": torch.ones(4), "a.empty": torch.zeros(0), "b": torch.ones(4), "c": torch.ones(4)}
    source = write(tmp_path / "source", tensors)
    for names in (["a", "b", "c", "a.empty"], ["a.empty", "c", "b", "a"]):
        rewritten_header(source / NAME, names)
        patch = patched(source, tmp_path / "target", {key: value * 2 for key, value in tensors.items()})
        assert all((load_file(tmp_path / "target" / NAME)[key] == 2).all() for key in tensors)
        require_reverts(patch, tmp_path / "target")


def test_an_edit_of_another_size_or_type_is_our_defect(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a": torch.ones(4)})
    for index, edit in enumerate((torch.ones(2, 3), torch.ones(3), torch.ones(4).half())):
        with pytest.raises(DefectError, match="another type or size"):
            patched(source, tmp_path / f"t{index}", {"a": edit})
    assert not list(tmp_path.rglob("patch.safetensors"))


def test_two_files_go_into_one_patch(tmp_path: Path) -> None:
    names = ["model-00001.safetensors", "model-00002.safetensors", "model-00003.safetensors"]
    for index, name in enumerate(names):
        write(tmp_path / "source", {"w": torch.full((6,), 1.0 + index)}, name=name)
    files = {name: open_tensor_file(tmp_path / "source" / name) for name in names}
    with PatchedCopies(
        files, [(name, "w") for name in names], {}, tmp_path / "target", tmp_path / "patch.safetensors"
    ) as writer:
        writer.edit(names[2], "w", [torch.full((6,), 3.0)])
        for name in names[:2]:
            writer.edit(name, "w", [torch.zeros(6)])
        patch = writer.finish()
    # The third did not change.
    assert [file.path for file in patch.description.files] == names[:2]
    assert (tmp_path / "target" / names[2]).read_bytes() == (tmp_path / "source" / names[2]).read_bytes()
    transform(patch, tmp_path / "source", tmp_path / "applied", "apply")
    assert {path.name for path in (tmp_path / "applied").iterdir()} == set(names[:2])
    for name in names[:2]:
        assert sha256_file(tmp_path / "applied" / name) == sha256_file(tmp_path / "target" / name)


@pytest.mark.parametrize("key", ["w", "ключ." * 400, 'a"b\\c/é\n', "層" * 2000])
@pytest.mark.parametrize("recipe", [{}, {"method": "ж" * 5000, "quote": '"\\\n'}])
@pytest.mark.parametrize("changed", [0, 3, 400])
def test_the_header_has_room_for_every_name(tmp_path: Path, key: str, recipe: dict[str, object], changed: int) -> None:
    before = torch.randn(400, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[:changed] = torch.randn(changed, generator=torch.Generator().manual_seed(1))
    source = write(tmp_path / "source", {key: before, "other": torch.zeros(1)})
    patch = patched(source, tmp_path / "target", {key: after}, recipe)
    assert patch.description.recipe == (recipe or {"method": "test"})
    assert [(record.key, record.changed) for record in patch.description.tensors] == [(key, changed)] * bool(changed)
    require_reverts(patch, tmp_path / "target")


def test_the_official_library_opens_a_patch(tmp_path: Path) -> None:
    tensors = many()
    source = write(tmp_path / "source", tensors)
    patch = patched(source, tmp_path / "target", {key: tensors[key] * 0.5 for key in edited_keys(tensors)})
    before, after = (open_tensor_file(folder / NAME) for folder in (source, tmp_path / "target"))
    with safetensors.safe_open(patch.stored.path, framework="pt") as file:
        description = json.loads(file.metadata()[METADATA_KEY])
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    assert description == json.loads(patch.description.model_dump_json())
    for record in patch.description.tensors:
        old, new = (np.frombuffer(each.read_bytes(record.key), np.uint8) for each in (before, after))
        for part, data in parts_between(old, new, record.item_bytes).items():
            assert bytes(parts.pop(part_name(record, part)).numpy()) == data
    assert parts == {}
    with patch.stored.path.open("rb") as stream:
        assert struct.unpack("<Q", stream.read(8))[0] % 8 == 0


def test_a_patch_without_changes_opens_too(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a": torch.ones(4)})
    path = patched(source, tmp_path / "target", {"a": torch.ones(4)}).stored.path
    with safetensors.safe_open(path, framework="pt") as file:
        assert list(file.keys()) == []
    assert read_patch(path).description.files == ()
