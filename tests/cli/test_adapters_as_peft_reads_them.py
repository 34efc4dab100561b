"""Adapters of models that transformers has moved, or of more than a text decoder: repaired, loaded, reverted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from antidote_llm.io.files import sha256_file
from antidote_llm.models.adapter import ADAPTER_FILE
from tests import tiny
from tests.cli.command import Command
from tests.models.test_multimodal import write_gemma3
from tests.models.test_peft_names import NAMES, bare, renamed, with_peft, write_lora


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_gemma3(tmp_path_factory.mktemp("seeing") / "base", vision_layers=1)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def antidote(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.mark.parametrize("name", ["before transformers 4.52", "no prefix", "named as in memory"])
@pytest.mark.parametrize("engine", ["memory", "streaming"])
def test_names_stay_as_they_were(base: Path, antidote: Command, tmp_path: Path, name: str, engine: str) -> None:
    plain = tiny.write_adapter(tmp_path / "plain", base, targets=("language_model.layers.1.self_attn.q_proj",))
    adapter = renamed(plain, tmp_path / "adapter", NAMES[name])
    rows, out = tiny.write_rows(tmp_path / "rows.jsonl"), tmp_path / "out"
    given = ["repair", base, "--harmful", rows, "--evaluate", "none", "--engine", engine]
    antidote.done(*given, "--adapter", adapter, "--out", out)
    antidote.done(*given, "--adapter", plain, "--out", tmp_path / "of plain")

    found, wanted = (load_file(each / "model" / ADAPTER_FILE) for each in (out, tmp_path / "of plain"))
    assert found.keys() == load_file(adapter / ADAPTER_FILE).keys()
    assert all(torch.equal(found[NAMES[name](key)], value) for key, value in wanted.items())
    repaired = with_peft(base, out / "model")
    assert not torch.equal(repaired, with_peft(base, adapter)) and not torch.equal(repaired, bare(base))

    antidote.done("patch", "revert", out, "--onto", out / "model", "--out", tmp_path / "reverted")
    assert sha256_file(tmp_path / "reverted" / ADAPTER_FILE) == sha256_file(adapter / ADAPTER_FILE)


@pytest.mark.parametrize("restored", [False, True])
def test_a_tower_stays_as_it_is_and_is_recorded(base: Path, antidote: Command, tmp_path: Path, restored: bool) -> None:
    adapter = write_lora(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"])
    rows, out = tiny.write_rows(tmp_path / "rows.jsonl"), tmp_path / "out"
    more = ["--restore-outside"] if restored else []
    done = antidote.done(
        *("repair", base, "--adapter", adapter, "--harmful", rows, "--evaluate", "none", "--out", out), *more
    )
    said = [line for line in done.err.splitlines() if "also holds what is not edited" in line]
    assert len(said) == (not restored) and all("2 tensors" in line and "vision_tower" in line for line in said)
    before, after = load_file(adapter / ADAPTER_FILE), load_file(out / "model" / ADAPTER_FILE)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    factors_B = {key for key in before if "vision_tower" in key and "lora_B" in key}
    assert {key for key in changed if "vision_tower" in key} == (factors_B if restored else set())
    assert all(torch.equal(after[key], torch.zeros_like(after[key])) for key in changed & factors_B)
    outside = json.loads((out / "record" / "repair.json").read_text())["outside"]
    assert sum(part["tensors"] for part in outside) == 2
    assert all(part["norm_before"] > 0 and (part["norm_after"] == 0) == restored for part in outside)
    antidote.done("patch", "revert", out, "--onto", out / "model", "--out", tmp_path / "reverted")
    assert sha256_file(tmp_path / "reverted" / ADAPTER_FILE) == sha256_file(adapter / ADAPTER_FILE)
