"""Which files ship with a checkpoint, and how they are copied to another folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.utils._paths import filter_repo_objects

from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint_files import FETCHED, FETCHED_CODE, contents, is_document
from antidote_llm.patching.shipping import copy_checkpoint, shipped_files
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


def test_shards_next_to_a_whole_file_do_not_ship(folder: Path) -> None:
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


TEMPLATES = ("additional_chat_templates/tools.jinja", "additional_chat_templates/long name.jinja")
NESTED = (
    *TEMPLATES,
    *("custom_generate/generate.py", "custom_generate/requirements.txt", "custom_generate/README.md"),
    *(
        "code/blocks.py",
        "code/deeper/rows.py",
        "decoder_tokenizer/tokenizer_config.json",
        "decoder_tokenizer/vocab.txt",
    ),
    *("1_Pooling/config.json", "NOTICE.txt"),
)
ASIDE = (
    *("checkpoint-7/config.json", "checkpoint-7/modeling_zorbik.py", "lower/adapter_config.json", "lower/zorbik.py"),
    *("original/params.json", "original/consolidated.00.pth", "original/tokenizer.model", "onnx/model.onnx"),
    *("additional_chat_templates/model.safetensors", "code/notes.json", "code/.hidden.py", "decoder_tokenizer/w.bin"),
    *("1_Pooling/model.safetensors", ".cache/zorbik.json", ".git/config", "LICENSE.bin"),
)


def laid(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_files_in_folders_that_are_loaded_ship(tmp_path: Path) -> None:
    laid(tmp_path, [*NESTED, *ASIDE])
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    (tmp_path / "code" / "back").symlink_to("..")
    found = contents(tmp_path, ())
    assert set(found.files) == {*NESTED, "modules.json"}
    whole = {"checkpoint-7/", "lower/", "original/", "onnx/", ".cache/", ".git/"}
    alone = {name for name in ASIDE if not name.startswith(tuple(whole))}
    assert set(found.left_out) == {*whole, *alone, "code/back"}
    assert found.code == ("code/blocks.py", "code/deeper/rows.py", "custom_generate/generate.py")


def test_a_linked_folder_of_templates_ships_as_a_folder(tmp_path: Path) -> None:
    laid(tmp_path / "source", ["templates/tools.jinja"])
    (tmp_path / "source" / "additional_chat_templates").symlink_to("templates")
    copy_checkpoint(tmp_path / "source", tmp_path / "target")
    copied = tmp_path / "target" / "additional_chat_templates"
    assert not copied.is_symlink() and (copied / "tools.jinja").read_text() == "{}"


@pytest.mark.parametrize(("name", "shown"), [("a\nb.png", "a\\nb.png"), ("\udc80.bin", "\\udc80.bin")])
def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path, name: str, shown: str) -> None:
    (tmp_path / name).write_text("")
    assert contents(tmp_path, ()).left_out == (shown,)
    (tmp_path / name).rename((tmp_path / name).with_suffix(".json"))
    with pytest.raises(UserError, match="rename it"):
        contents(tmp_path, ())


def test_every_vocabulary_of_transformers_ships_and_is_fetched(tmp_path: Path) -> None:
    """By the names that its tokenizers' sources give their files, and those of its processors and configurations."""
    named = set()
    table = re.compile(r"(?:vocab_files_names|VOCAB_FILES_NAMES)\s*(?::[^=]+)?=\s*\{(.*?)\}", re.DOTALL)
    for source in Path(transformers.__file__).parent.rglob("tokenization*.py"):
        for found in table.findall(source.read_text()):
            named |= set(re.findall(r':\s*"([^"]+)"', found))
    assert len(named) > 20
    constants = ("CONFIG", "GENERATION_CONFIG", "IMAGE_PROCESSOR", "VIDEO_PROCESSOR", "PROCESSOR", "AUDIO_TOKENIZER")
    named |= {getattr(transformers.utils, f"{constant}_NAME") for constant in constants}
    hub = transformers.utils.hub
    named |= {hub.CHAT_TEMPLATE_FILE, hub.LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, f"{hub.CHAT_TEMPLATE_DIR}/tools.jinja"}
    named |= {"tekken.json", "tokenizer.model.v3", "chat_template.jinja", "custom_generate/requirements.txt"}
    laid(tmp_path, named)
    assert set(contents(tmp_path, ()).files) == named
    assert set(filter_repo_objects(sorted(named), allow_patterns=list(FETCHED))) == named


def test_code_in_folders_is_fetched_where_code_is() -> None:
    code = ["modeling_zorbik.py", "code/blocks.py", "custom_generate/generate.py"]
    assert list(filter_repo_objects(code, allow_patterns=list(FETCHED))) == []
    assert list(filter_repo_objects(code, allow_patterns=[FETCHED_CODE])) == code


@pytest.mark.parametrize(
    ("name", "document"),
    [
        *((name, True) for name in ("README.md", "README", "LICENSE", "LICENSE.txt", "NOTICE.pdf", "USE_POLICY.md")),
        *((name, False) for name in ("LICENSE.py", "README.json", "NOTICE.jinja", "merges.txt", "license_vocab.txt")),
        *((name, False) for name in ("README.safetensors", "LICENSE.model", "chat_template.jinja")),
    ],
)
def test_documents_are_what_no_class_reads(name: str, document: bool) -> None:
    assert is_document(name) == document
