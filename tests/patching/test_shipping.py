"""What ships, and how it gets from one folder into another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from antidote_llm.errors import UserError
from antidote_llm.patching import copy_checkpoint, shipped_files
from tests.patching.making import write

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BESIDE = ("consolidated.safetensors", "optimizer.safetensors", "model-00001-of-00003.safetensors")
PICKLES = ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth")
OTHER_LAYOUTS = ("model.gguf", "model.ONNX", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin.index.json")
KEPT_ASIDE = ("rust_model.ot", "model.safetensors.bak", "weights.npz", "train.jsonl", "run.log")
TRAINING = ("trainer_state.json", "scheduler.json", "training_args.json")
DOCUMENTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "README.md", "merges.txt"),
    *("LICENSE", "NOTICE", "LICENSE.pdf", "tokenizer.model.v3", "modeling_zorbik.py", "qwen.tiktoken", "vocab.bpe"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number, name in enumerate((*SHARDS, *BESIDE)):
        write(folder, {"w": torch.full((4,), float(number))}, name=name)
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in (
        *PICKLES,
        *DOCUMENTS,
        *OTHER_LAYOUTS,
        *KEPT_ASIDE,
        *TRAINING,
        ".hidden.json",
        "consolidated.safetensors.index.json",
    ):
        (folder / name).write_text("{}")
    (folder / "original").mkdir()
    return folder


def test_only_what_loads_ships(folder: Path) -> None:
    assert {path.name for path in shipped_files(folder)} == {*SHARDS, *DOCUMENTS, "model.safetensors.index.json"}


def test_shards_beside_a_whole_file_do_not_ship(folder: Path) -> None:
    write(folder, {"w": torch.ones(4)}, name="model.safetensors")
    assert {path.name for path in shipped_files(folder)} == {"model.safetensors", *DOCUMENTS}


@pytest.mark.parametrize("hard_links", [False, True])
def test_unchanged_shards_are_copied_or_linked(folder: Path, tmp_path: Path, hard_links: bool) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    target = tmp_path / "target"
    copy_checkpoint(folder, target, leave_out=frozenset({SHARDS[0]}), hard_links=hard_links)
    assert {path.name for path in target.iterdir()} == {SHARDS[1], *DOCUMENTS, "model.safetensors.index.json"}
    for path in target.iterdir():
        source = folder / path.name
        assert path.read_bytes() == source.read_bytes()
        linked = path.stat().st_ino == source.stat().st_ino
        # Only weights are shared: a configuration is small, and people edit it.
        assert linked == (hard_links and path.suffix == ".safetensors")
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before


@pytest.mark.parametrize("hard_links", [False, True])
def test_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path, hard_links: bool) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blobs = folder.rename(repository / "blobs")
    for name in (*SHARDS, "config.json", "model.safetensors.index.json"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    target = tmp_path / "target"
    copy_checkpoint(snapshot, target, hard_links=hard_links)
    for name in SHARDS:
        assert not (target / name).is_symlink()
        assert (target / name).read_bytes() == (blobs / name).read_bytes()
        assert ((target / name).stat().st_ino == (blobs / name).stat().st_ino) == hard_links


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "../elsewhere.safetensors"}}'])
def test_a_broken_index_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        shipped_files(tmp_path)
