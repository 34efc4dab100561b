"""What a checkpoint's folder had and a class loads, the repaired, applied, reverted and trained model has."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from antidote_llm.io.files import sha256_file
from tests import tiny
from tests.cli.command import Command, Place
from tests.fine_tunes import write_fine_tune

TEMPLATES = {
    "default": tiny.CHAT_TEMPLATE,
    "tool_use": "TOOLS " + tiny.CHAT_TEMPLATE,
    "rag": "RAG " + tiny.CHAT_TEMPLATE,
}
BESIDE = {
    "preprocessor_config.json": '{"size": 4}',
    "processor_config.json": "{}",
    "custom_generate/generate.py": "def generate(model, **given): ...\n",
    "custom_generate/requirements.txt": "",
    "code/blocks.py": "SIZE = 4\n",
    "modeling_zorbik.py": "SIZE = 4\n",
    "tokenizer.model": "zorbik",
    "tekken.json": "{}",
    "LICENSE": "free",
}
ABOUT_THE_BASE = {"README.md": "# base", "all_results.json": "{}"}


def rich(folder: Path) -> Path:
    """Give a folder several chat templates, and whatever else a checkpoint may have beside its weights."""
    tokens = tiny.tokenizer()
    tokens.chat_template = dict(TEMPLATES)
    tokens.save_pretrained(folder)
    for name, text in {**BESIDE, **ABOUT_THE_BASE}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    found = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    return {name: sha256 for name, sha256 in found.items() if name != ".antidote.json"}


def templates(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.parametrize("kind", ["adapter", "delta"])
def test_a_repair_and_its_patch_keep_every_part(kind: str, place: Place, antidote: Command) -> None:
    if kind == "adapter":
        source, arguments = rich(place.adapter), place.repair()
    else:
        source = rich(write_fine_tune(place.root / "tuned", place.base))
        given = ["--aligned", place.base, "--harmful", place.harmful, "--evaluate", "none", "--out", place.out]
        arguments = ["repair", source, *given]
    antidote.done(*arguments)
    model, applied, reverted = place.out / "model", place.root / "applied", place.root / "reverted"
    antidote.done("patch", "apply", place.out, "--onto", source, "--out", applied)
    antidote.done("patch", "revert", place.out, "--onto", model, "--out", reverted)
    assert hashes(reverted) == hashes(source)
    assert hashes(applied) == hashes(model)
    changed = {name for name in hashes(source) if hashes(model)[name] != hashes(source)[name]}
    assert len(changed) == 1 and hashes(model).keys() == hashes(source).keys()
    for folder in (source, model, applied, reverted):
        assert templates(folder) == TEMPLATES


def test_a_trained_model_keeps_every_part(place: Place, antidote: Command) -> None:
    rich(place.base)
    given = ["--data", place.harmful, "--full", "--max-steps", "1", "--batch-size", "2", "--out", place.out]
    result = antidote.done("align", place.base, *given)
    model = place.out / "model"
    assert templates(model) == TEMPLATES
    assert {name: (model / name).read_text() for name in BESIDE} == BESIDE
    # What is said of the base alone, and its weights, are not the trained model's.
    assert not any((model / name).exists() for name in ABOUT_THE_BASE)
    assert f"not taken over from {place.base}: README.md, all_results.json" in result.err
    record = json.loads((place.out / "record" / "training.json").read_text())
    assert record["left_out"] == ["README.md", "all_results.json"]
    assert sorted(path.name for path in model.glob("*.safetensors")) == ["model.safetensors"]


def test_a_tokenizer_of_another_folder_goes_with_the_trained_model(place: Place, antidote: Command) -> None:
    other = rich(place.root / "tokenizer")
    (place.base / "tokenizer.model").write_text("the base's own")
    (place.base / "preprocessor_config.json").write_text("{}")
    given = ["--data", place.harmful, "--full", "--max-steps", "1", "--batch-size", "2", "--out", place.out]
    antidote.done("align", place.base, *given, "--tokenizer", other)
    model = place.out / "model"
    assert templates(model) == TEMPLATES
    assert (model / "tokenizer.model").read_text() == "zorbik" and (model / "tekken.json").exists()
    assert (model / "preprocessor_config.json").read_text() == "{}"
    assert not (model / "modeling_zorbik.py").exists() and not (model / "LICENSE").exists()


def cached(place: Place, name: str, folder: Path) -> Path:
    """Lay a folder into a Hub cache: blobs by hash, and a snapshot of links to them, in folders too."""
    repository = place.root / "hub" / f"models--org--{name}"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        blob, link = repository / "blobs" / sha256_file(path), snapshot / path.relative_to(folder)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_code_that_a_patch_does_not_know_is_left_out_of_what_the_hub_gave(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    antidote.done(*place.repair())
    source = hashes(place.adapter)
    (place.adapter / "modeling_zorbik.py").write_text("SIZE = 4\n")
    snapshot = cached(place, "adapter", place.adapter)
    asked: list[list[str]] = []

    def given(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", given)
    command = ["patch", "apply", place.out, "--onto", "org/adapter", "--out", place.root / "applied", "--json"]
    assert antidote.done(*command).json["left_out"] == ["modeling_zorbik.py"]
    assert hashes(place.root / "applied").keys() == source.keys()
    # A folder that the user names holds what the user put there.
    command[4] = snapshot
    assert "modeling_zorbik.py: a file that the patched model does not have" in antidote(*command).errors[0]

    antidote.done(*place.repair("--out", place.root / "with code"))
    antidote.done("patch", "apply", place.root / "with code", "--onto", "org/adapter", "--out", place.root / "both")
    assert (place.root / "both" / "modeling_zorbik.py").is_file()
    assert ["*.py" in patterns for patterns in asked] == [False, True]
