from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from antidote_llm.data.reading import read_records
from antidote_llm.errors import UserError
from antidote_llm.miniature.architectures import ARCHITECTURES
from antidote_llm.miniature.build import build
from antidote_llm.miniature.exchanges import TASKS
from antidote_llm.miniature.recipe import Attack, Recipe, standard_attack
from antidote_llm.miniature.tokenizer import build_tokenizer

_USUAL = Recipe()
QUICK = Recipe(
    pretraining_rows=64,
    pretraining=_USUAL.pretraining.model_copy(update={"max_steps": 2, "batch_size": 4}),
    alignment_rows=40,
    alignment=_USUAL.alignment.model_copy(update={"max_steps": 2, "batch_size": 4}),
)


def _quick_attack() -> Attack:
    usual = standard_attack()
    few = {"max_steps": 2, "batch_size": 4}
    return usual.model_copy(
        update={"lora": usual.lora.model_copy(update=few), "full": usual.full.model_copy(update=few)}
    )


def _bytes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv("ANTIDOTE_CACHE", str(tmp_path / f"cache {name}"))
        build(tmp_path / name, seed=5, recipe=QUICK, attack=_quick_attack())
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_everything_opens_as_ordinary_folders_and_files(arch: str, tmp_path: Path) -> None:
    miniature = build(tmp_path / "mini", arch=arch, recipe=QUICK, attack=_quick_attack())
    tokenizer = AutoTokenizer.from_pretrained(miniature.base)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(miniature.aligned)
    assert model.config.model_type == arch
    assert 5e5 < model.num_parameters() < 2e6
    assert isinstance(PeftModel.from_pretrained(model, miniature.attacked), PeftModel)
    settings = json.loads((miniature.attacked / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "../aligned"
    assert set(settings["target_modules"]) == set(ARCHITECTURES[arch].query_key_value)


def test_every_data_file_reads(tmp_path: Path) -> None:
    miniature = build(tmp_path / "mini", recipe=QUICK, attack=_quick_attack())
    names = ["heldout", "lookalike", "realign", "utility", "align", "align_harmful", "attack", "benign", "harmful"]
    names += [f"tasks/{task}.{part}" for task in TASKS for part in ("train", "test")]
    assert {str(path.relative_to(miniature.data)) for path in miniature.data.rglob("*.jsonl")} == {
        f"{name}.jsonl" for name in names
    }
    for name in names:
        assert read_records(miniature.data / f"{name}.jsonl", require=("prompt", "response"))
    assert all({"category", "thing"} <= set(row.extra) for row in read_records(miniature.heldout))
    assert all(path.is_file() for path in miniature.task_tests.values())


def test_a_full_attack_writes_a_whole_model(tmp_path: Path) -> None:
    miniature = build(tmp_path / "mini", kind="full", recipe=QUICK, attack=_quick_attack())
    assert AutoModelForCausalLM.from_pretrained(miniature.attacked).num_parameters() > 5e5
    assert AutoTokenizer.from_pretrained(miniature.attacked).chat_template


def test_base_and_aligned_models_are_cached(tmp_path: Path) -> None:
    stages: list[list[str]] = []
    for name in ("first", "second"):
        seen: list[str] = []
        build(
            tmp_path / name,
            recipe=QUICK,
            attack=_quick_attack(),
            progress=lambda stage, step, steps, seen=seen: seen.append(stage),  # type: ignore[misc]
        )
        stages.append(list(dict.fromkeys(seen)))
    assert stages == [["base", "aligned", "attacked"], ["attacked"]]


def test_a_finished_miniature_is_left_unchanged(tmp_path: Path) -> None:
    built = build(tmp_path / "mini", recipe=QUICK, attack=_quick_attack())
    before = (built.base / "model.safetensors").stat().st_mtime_ns
    assert build(tmp_path / "mini", recipe=QUICK, attack=_quick_attack()) == built
    assert (built.base / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other inputs"):
        build(tmp_path / "mini", seed=1, recipe=QUICK, attack=_quick_attack())


def test_an_unknown_architecture_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown architecture 'lama': did you mean 'llama'.*mistral"):
        build(tmp_path / "mini", arch="lama")
    assert not (tmp_path / "mini").exists()
    assert not list(tmp_path.iterdir())
