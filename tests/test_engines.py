"""Two engines, one statistic: a model in memory and one whose layers lie on the disk give the same bits, or refuse."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.errors import UserError
from antidote_llm.models.decoder import decoder_layers
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import Target, resolve_target
from tests import tiny
from tests.engine_architectures import CHOICES, COVERED, LEFT_OUT, write
from tests.engines import LENGTHS, assert_engines_agree, statistics

ADAPTED: Mapping[str, tuple[str, ...]] = {
    "llama": ("q_proj", "k_proj", "v_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "bloom": ("query_key_value", "dense"),
    "gemma3_text": ("q_proj", "o_proj", "down_proj"),
    "opt": ("fc1", "fc2", "q_proj"),
    "phi3": ("qkv_proj", "gate_up_proj"),
    "mixtral": ("q_proj", "v_proj"),
    "gpt_oss": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "deepseek_v3": ("q_a_proj", "kv_b_proj", "o_proj"),
    "bamba": ("in_proj", "q_proj"),
}
NARROW = ("llama", "gptj", "gemma2", "gpt_neox", "mamba2", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next")
_TWICE = r"saw \d+ of \d+ tokens in a forward pass"
_NO_LINEAR = r"is no linear layer of its own and cannot be repaired yet: choose what can be, as with .*sites attention"
REFUSALS: Mapping[str, str] = {
    "llama4_text": r"model\.layers\.1\.feed_forward\.experts\.gate_up_proj \(Llama4TextExperts\) " + _NO_LINEAR,
    "jetmoe": r"model\.layers\.0\.mlp\.input_linear\.weight \(JetMoeParallelExperts\) " + _NO_LINEAR,
    "longcat_flash": r"model\.layers\.0\.mlp\.experts\.gate_up_proj \(LongcatFlashExperts\) " + _NO_LINEAR,
    "dbrx": r"transformer\.blocks\.0\.ffn\.experts\.mlp\.w1 \(DbrxExpertGLU\) " + _NO_LINEAR,
    "recurrent_gemma": r"rg_lru\.input_gate_weight \(RecurrentGemmaRglru\) " + _NO_LINEAR,
    "rwkv": r"rwkv\.blocks\.0\.attention\.time_mix_key \(RwkvSelfAttention\) " + _NO_LINEAR,
    "gemma3n_text": r"model\.layers\.0\.altup\.modality_router " + _TWICE,
    "mamba": r"backbone\.layers\.0\.mixer\.dt_proj " + _TWICE,
    "falcon_mamba": r"backbone\.layers\.0\.mixer\.dt_proj " + _TWICE,
    "jamba": r"model\.layers\.0\.mamba\.dt_proj " + _TWICE,
    "zamba2": r"model\.layers\.1\.shared_transformer\.\S+ " + _TWICE,
}


def assert_every_matrix_is_a_site(opened: LoadedModel, target: Target, left_out: Sequence[str]) -> None:
    stack, layers = decoder_layers(opened.causal_model, "the model")
    matrices = {name: matrix for name, matrix in layers.named_parameters(prefix=stack) if matrix.dim() >= 2}
    others = {name for name in matrices if re.sub(r"^.*?\.\d+\.", "", name) in left_out}
    assert {re.sub(r"^.*?\.\d+\.", "", name) for name in others} == set(left_out)
    scored = sum(matrix.numel() for name, matrix in matrices.items() if name not in others)
    assert sum(math.prod(site.shape) for site in target.sites) == scored
    assert len({(site.file, site.key, site.part) for site in target.sites}) == len(target.sites)


def assert_every_token_was_seen(target: Target, moments: Moments) -> None:
    assert moments.tokens == sum(LENGTHS) and moments.rows == len(LENGTHS)
    of_experts: dict[tuple[str, str], int] = {}
    for site in target.sites:
        found = moments.sites[site.name]
        assert found.sum_squares_I.shape == found.sum_norms_I.shape == (site.shape[1],)
        assert found.sum_squares_I.dtype == found.sum_norms_I.dtype == torch.float64
        if site.expert is None:
            assert found.tokens == moments.tokens, site.name
            assert found.sum_squares_I.any() and found.sum_norms_I.any(), site.name
        else:
            kind = (site.module.rsplit(".", 2)[0], site.kind)
            of_experts[kind] = of_experts.get(kind, 0) + found.tokens
            assert bool(found.sum_squares_I.any()) == (found.tokens > 0), site.name
    assert set(of_experts.values()) <= {CHOICES * moments.tokens}


@pytest.mark.parametrize("name", COVERED)
def test_both_engines_give_the_same_bits_of_every_matrix(name: str, tmp_path: Path) -> None:
    opened, target, moments = assert_engines_agree(write(tmp_path / "model", name))
    assert_every_matrix_is_a_site(opened, target, LEFT_OUT.get(name, ()))
    assert_every_token_was_seen(target, moments)


@pytest.mark.parametrize("name", NARROW)
def test_in_half_precision_too_from_several_files_and_padded_left(name: str, tmp_path: Path) -> None:
    settings = CalibrationSettings(batch_tokens=24, padding_side="left", tokens="response")
    opened, _, moments = assert_engines_agree(
        write(tmp_path / "model", name, torch.bfloat16, sharded=True), settings=settings
    )
    assert opened.dtype == torch.bfloat16 and len(opened.base.weights) > 1
    assert moments.tokens == sum(length - length // 3 for length in LENGTHS)


def test_in_a_file_whose_header_moves_all_tensors_off_their_places(tmp_path: Path) -> None:
    file = tiny.write_model(tmp_path / "model") / "model.safetensors"
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    file.write_bytes(struct.pack("<Q", size + 3) + data[8 : 8 + size] + b"   " + data[8 + size :])
    assert_engines_agree(tmp_path / "model")


@pytest.mark.parametrize("name", ADAPTED)
def test_under_an_adapter_too(name: str, tmp_path: Path) -> None:
    base = write(tmp_path / "model", name)
    adapter = tiny.write_adapter(tmp_path / "adapter", base, targets=ADAPTED[name], fan_in_fan_out=name == "gpt2")
    _, target, moments = assert_engines_agree(base, adapter)
    assert {site.role for site in target.sites} == {"lora_A", "lora_B"}
    assert_every_token_was_seen(target, moments)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_covered_is_refused_by_name(name: str, on_disk: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", name)
    with pytest.raises(UserError, match=REFUSALS[name]) as refusal:
        opened = load_model(str(folder), layers_on_disk=on_disk)
        statistics(opened, resolve_target(opened, "weight"))
    assert "\n" not in str(refusal.value)


def test_attention_beside_experts_that_are_not_covered(tmp_path: Path) -> None:
    _, target, moments = assert_engines_agree(write(tmp_path / "model", "llama4_text"), pattern="attention")
    assert_every_token_was_seen(target, moments)


SHARES_KEYS: Mapping[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text"])
def test_keys_and_values_of_other_layers_need_the_model_in_memory(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", name, **SHARES_KEYS, num_kv_shared_layers=2)
    opened = load_model(str(folder))
    target = resolve_target(opened, "weight", pattern="attention")
    assert_every_token_was_seen(target, statistics(opened, target))
    opened = load_model(str(folder), layers_on_disk=True)
    with pytest.raises(UserError, match=r"decoder layer \d gets something else .* one by one: pass engine memory"):
        statistics(opened, resolve_target(opened, "weight", pattern="attention"))


@pytest.mark.parametrize("pattern", ["*.layers.0.*", "*.layers.0.*q_proj", "*.layers.1.*v_proj", "*.layers.2.mlp*"])
@pytest.mark.parametrize("batch_tokens", [24, 1000])
def test_some_sites_are_enough(pattern: str, batch_tokens: int, tmp_path: Path) -> None:
    settings = CalibrationSettings(batch_tokens=batch_tokens)
    assert_engines_agree(write(tmp_path / "model", "llama"), settings=settings, pattern=pattern)
