"""Merging an adapter is advised only where the merged model answers as the adapter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import AutoModelForCausalLM

from antidote_llm.errors import UserError
from antidote_llm.models.adapter import MERGE
from antidote_llm.models.load import load_model
from tests import tiny

IDS = torch.arange(5, 15)[None]
CAUSAL: Any = {"task_type": "CAUSAL_LM"}


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **CAUSAL, **settings})


MERGED: dict[str, Any] = {
    "trainable tokens of lora": lora(trainable_token_indices=[5]),
    "target parameters": lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "qalora": lora(use_qalora=True, qalora_group_size=8),
    "kasa": lora(kasa_config=KasaConfig()),
    "bdlora": lora(use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)),
    "velora": lora(velora_config=VeloraConfig(num_groups=2)),
    "monteclora": lora(monteclora_config=MontecloraConfig(num_samples=2)),
    "ADALORA": AdaLoraConfig(target_modules=["q_proj"], total_step=10, init_lora_weights=False, **CAUSAL),
    "IA3": IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False, **CAUSAL),
    "LOHA": LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False, **CAUSAL),
    "LOKR": LoKrConfig(r=4, target_modules=["q_proj"], init_weights=False, **CAUSAL),
    "OFT": OFTConfig(target_modules=["q_proj"], oft_block_size=8, init_weights=False, **CAUSAL),
    "VERA": VeraConfig(r=4, target_modules=["q_proj"], **CAUSAL),
    "LN_TUNING": LNTuningConfig(target_modules=["input_layernorm"], **CAUSAL),
    "TRAINABLE_TOKENS": TrainableTokensConfig(token_indices=[5], **CAUSAL),
}
NOT_MERGED: dict[str, Any] = {
    "alora": lora(alora_invocation_tokens=[5]),
    "layers twice": lora(layer_replication=[[0, 2], [1, 2]]),
    "prompt": PromptTuningConfig(num_virtual_tokens=2, **CAUSAL),
    "prefix": PrefixTuningConfig(num_virtual_tokens=2, **CAUSAL),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, **CAUSAL),
    "adaption": AdaptionPromptConfig(adapter_len=2, adapter_layers=1, **CAUSAL),
}


def write(folder: Path, base: Path, config: Any) -> Path:
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", MERGED)
def test_merging_keeps_the_fine_tune_where_it_is_advised(tmp_path: Path, kind: str, tied: bool) -> None:
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = write(tmp_path / "adapter", base, MERGED[kind])
    with pytest.raises(UserError) as caught:
        load_model(str(base), str(adapter))
    assert MERGE in caught.value.text
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
        wanted, bare = adapted(IDS).logits, AutoModelForCausalLM.from_pretrained(base)(IDS).logits
        adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
        found = load_model(str(tmp_path / "merged")).model(IDS).logits
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(bare, wanted, atol=1e-2)


@pytest.mark.parametrize("kind", NOT_MERGED)
def test_merging_is_not_advised_where_it_is_impossible(tmp_path: Path, kind: str) -> None:
    base = tiny.write_model(tmp_path / "base")
    adapter = write(tmp_path / "adapter", base, NOT_MERGED[kind])
    with pytest.raises(UserError) as caught:
        load_model(str(base), str(adapter))
    assert MERGE not in caught.value.text
    adapted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with pytest.raises((AttributeError, NotImplementedError, RuntimeError)):
        adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
