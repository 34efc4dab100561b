"""What models/peft_private.py assumes of peft: a failing test names what a new version has changed."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from antidote_llm.models import peft_private as private
from tests.conftest import Folders


def test_a_tensor_that_is_only_renamed_stays_the_same_object(folders: Folders) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders.base)
    name, values = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(2, 32)
    assert private.as_loaded(model, {name: values}, "default")[name] is values


def test_the_weight_of_a_plain_layer_is_its_own() -> None:
    layer = nn.Linear(3, 2)
    assert torch.equal(private.unpacked_weight(layer), layer.weight)


def test_dora_asks_for_the_product_that_was_put_in(folders: Folders) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders.base)
    adapted = get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    calls = []

    def product(lora_A: nn.Module, lora_B: nn.Module, **_: object) -> Tensor:
        calls.append((lora_A, lora_B))
        found: Tensor = lora_B.get_parameter("weight") @ lora_A.get_parameter("weight")
        return found

    private.replace_dora_products(adapted, product)
    adapted.eval()(torch.arange(5, 9)[None])
    assert len(calls) == model.config.num_hidden_layers
