"""What models/transformers_private.py assumes of transformers: a failing test names what a new version has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from antidote_llm.models import transformers_private as private
from tests import mixtures
from tests.conftest import Folders


def empty(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with torch.device("meta"):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    return made


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixtures.write(tmp_path_factory.mktemp("mixtral"), "mixtral")


def test_a_table_says_how_the_files_of_a_model_are_converted(mixtral: Path) -> None:
    converters = [each for each in private.conversions(empty(mixtral)) if isinstance(each, private.WeightConverter)]
    [joined] = [each for each in converters if len(each.source_patterns) == 2]
    stacked, concatenated = joined.operations
    assert isinstance(stacked, private.MergeModulelist) and stacked.dim == 0
    assert isinstance(concatenated, private.Concatenate) and concatenated.dim == 1
    assert concatenated.num_shards_attribute is None and len(joined.target_patterns) == 1
    turn = private.Transpose(1, 2)
    assert {turn.dim0, turn.dim1} == {1, 2} and not turn.check_dims


def test_names_in_files_lead_to_names_in_the_model(mixtral: Path, folders: Folders) -> None:
    keys = ["model.layers.0.block_sparse_moe.experts.0.w1.weight", "model.norm.weight", "model.nothing.weight"]
    found = {key: (name, pattern is None) for key, name, pattern in private.names_in_model(keys, empty(mixtral))}
    assert found["model.norm.weight"] == ("model.norm.weight", True)
    assert found[keys[0]] == ("model.layers.0.mlp.experts.gate_up_proj", False) and len(found) == 2
    assert list(private.names_in_model(["norm.weight"], empty(folders.base))) == [
        ("norm.weight", "model.norm.weight", None)
    ]


def test_a_model_knows_its_tied_and_its_ignored_tensors(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    assert private.tied_names(made) == {"lm_head.weight": "transformer.wte.weight"}
    assert private.ignored_tensors(made)


def test_part_of_the_tensors_can_be_loaded_and_those_of_another_shape_are_named(folders: Folders) -> None:
    model, name = empty(folders.base), "model.norm.weight"
    settings = private.loading_settings(model, torch.float32)
    values = torch.full((32,), 2.0)
    assert private.load_tensors(model, {name: values}, settings) == []
    assert torch.equal(model.get_parameter(name), values) and model.get_parameter("lm_head.weight").is_meta
    assert private.load_tensors(empty(folders.base), {name: torch.zeros(3)}, settings) == [name]


def test_buffers_are_computed_without_the_parameters(folders: Folders) -> None:
    whole, model = AutoModelForCausalLM.from_pretrained(folders.base), empty(folders.base)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    private.compute_buffers_anew(model)
    wanted = dict(whole.named_buffers())
    assert wanted and all(torch.equal(buffer, wanted[name]) for name, buffer in model.named_buffers())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_experts_can_be_computed_by_another_function(mixtral: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixtral)
    experts = [module for module in model.modules() if private.dispatched_experts(module)]
    assert len(experts) == model.config.num_hidden_layers and all(module.has_gate for module in experts)
    calls = []

    def forward(module: Any, hidden_ND: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        calls.append(module)
        assert private.gated(module, torch.ones(1, 2 * module.intermediate_dim)).shape == (1, module.intermediate_dim)
        return hidden_ND

    tokens = torch.arange(5, 9)[None]
    before = model(tokens).logits
    with private.computed_by("test_experts", forward, {id(each.config): each.config for each in experts}.values()):
        model(tokens)
    assert calls == experts
    assert torch.equal(model(tokens).logits, before) and len(calls) == len(experts)


def test_a_model_says_whether_it_can_use_a_dynamic_cache(folders: Folders) -> None:
    from transformers import XLNetConfig, XLNetLMHeadModel

    assert private.supports_dynamic_cache(empty(folders.base))
    with torch.device("meta"):
        other = XLNetLMHeadModel(XLNetConfig(vocab_size=8, d_model=8, n_layer=1, n_head=1, d_inner=8))
    assert not private.supports_dynamic_cache(other)
