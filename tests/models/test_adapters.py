"""Which adapters are understood, setting by setting: all others are refused by the setting's name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from antidote_llm.errors import UserError
from antidote_llm.models.load import load_model
from tests import tiny
from tests.cli.command import edit_json
from tests.conftest import Folders

# What each setting of LoraConfig is when it is used, and which of them an adapter may have.
REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [5],
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1},
    "layer_replication": [[0, 2], [1, 2]],
    "lora_bias": True,
    "megatron_config": {"hidden_size": 32},
    "monteclora_config": {"num_samples": 2},
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [5],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"num_groups": 2},
}
UNDERSTOOD: dict[str, Any] = {
    "alpha_pattern": {"q_proj": 32},
    "bias": "none",
    "ensure_weight_tying": True,
    "exclude_modules": ["o_proj"],
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "layers_to_transform": [0, 1],
    "lora_alpha": 7,
    "lora_dropout": 0.5,
    "modules_to_save": None,
    "qalora_group_size": 8,
    "rank_pattern": {"o_proj": 4},
    "revision": "main",
    "use_rslora": True,
}
_KNOWN_OTHERWISE = {
    *("auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "r", "target_modules", "task_type"),
    *("use_dora", "runtime_config", "megatron_core", "layers_pattern"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}


def test_every_setting_of_peft_has_been_examined() -> None:
    named = {field.name for field in dataclasses.fields(LoraConfig)}
    assert named == {*REFUSED, *UNDERSTOOD, *_KNOWN_OTHERWISE}


def changed(folders: Folders, root: Path, **settings: Any) -> Path:
    adapter = Path(shutil.copytree(folders.adapter, root / "adapter"))
    edit_json(adapter / "adapter_config.json", **settings)
    return adapter


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_changes_the_computation_is_named(folders: Folders, tmp_path: Path, name: str) -> None:
    adapter = changed(folders, tmp_path, **{name: REFUSED[name]})
    with pytest.raises(UserError, match=f"adapter: LoRA .*'{name}'.* cannot be repaired"):
        load_model(str(folders.base), str(adapter))


def test_a_setting_that_this_peft_does_not_know_is_named(folders: Folders, tmp_path: Path) -> None:
    adapter = changed(folders, tmp_path, use_zorbik=True, use_nothing=None)
    with pytest.raises(UserError, match=r"'use_zorbik' in adapter_config\.json is unknown to peft"):
        load_model(str(folders.base), str(adapter))


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_setting_that_does_not_change_it_is_accepted(folders: Folders, tmp_path: Path, name: str) -> None:
    adapter = changed(folders, tmp_path, **{name: UNDERSTOOD[name]})
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders.base), adapter).eval()
    opened, ids = load_model(str(folders.base), str(adapter)), torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(opened.model(ids).logits, plain(ids).logits)
    for site in opened.sites:
        assert site.scaling == plain.get_submodule(f"base_model.model.{site.module}").scaling["default"]


@pytest.mark.parametrize("start", ["pissa", "olora", "loftq", "corda", "lora_ga", "pissa_niter_4"])
def test_an_initialisation_that_changes_the_base_is_named(folders: Folders, tmp_path: Path, start: str) -> None:
    adapter = changed(folders, tmp_path, init_lora_weights=start)
    with pytest.raises(UserError, match=f"LoRA initialised with '{start}'"):
        load_model(str(folders.base), str(adapter))


def test_magnitudes_without_dora_are_no_plain_factors(folders: Folders, tmp_path: Path) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", folders.base, use_dora=True)
    edit_json(adapter / "adapter_config.json", use_dora=False)
    with pytest.raises(UserError, match=r"lora_magnitude_vector' is a magnitude of DoRA.*use_dora"):
        load_model(str(folders.base), str(adapter))
