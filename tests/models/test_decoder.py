"""One rule finds the decoder layers: for repairs, for reading layer by layer, and for defenses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from antidote_llm.errors import UserError
from antidote_llm.models.decoder import decoder_layers, find_decoder
from tests import tiny
from tests.architectures import ARCHITECTURES
from tests.models.test_multimodal import write_gemma3


def empty(name: str) -> PreTrainedModel:
    architecture = ARCHITECTURES[name]
    config = architecture.config(vocab_size=tiny.VOCABULARY_SIZE, pad_token_id=0, **architecture.settings)
    with torch.device("meta"):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return made


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defenses_look_at_the_layers_that_are_repaired(name: str) -> None:
    model = empty(name)
    stack, layers = decoder_layers(model, name)
    found = find_decoder(model)
    assert found.layers == tuple(layers) and model.get_submodule(stack) is layers
    assert len(layers) == model.config.num_hidden_layers == len(found.attention) == len(found.feed_forward)
    for layer, attention, feed_forward in zip(found.layers, found.attention, found.feed_forward, strict=True):
        inside = set(layer.modules())
        assert attention in inside and feed_forward in inside and attention is not feed_forward


def test_adapters_do_not_hide_the_layers() -> None:
    model = empty("llama")
    stack, layers = decoder_layers(model, "llama")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert decoder_layers(adapted, "llama") == (stack, layers) and find_decoder(adapted).layers == tuple(layers)


def test_the_layers_of_the_text_part_are_found_however_deep_the_vision_tower(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(write_gemma3(tmp_path / "m", vision_layers=5))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stack, layers = decoder_layers(model, "gemma3")
    assert "language_model" in stack and len(layers) == config.text_config.num_hidden_layers < 5
    assert find_decoder(model).layers == tuple(layers)


def test_a_model_without_a_list_of_layers_is_named() -> None:
    model = empty("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    for find in (lambda: decoder_layers(model, "zorb"), lambda: find_decoder(model)):
        with pytest.raises(UserError, match=r"(zorb|LlamaForCausalLM): no list of decoder layers was found"):
            find()
