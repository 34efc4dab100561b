"""Tiny checkpoints of every architecture that a repair is tested on: an aligned model, and a fine-tune of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests import tiny
from tests.mixtures import MIXTURES, REFUSED_MIXTURES

_GATED_SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_PLAIN_SIZES: Mapping[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_OPT_SIZES: Mapping[str, Any] = {**_PLAIN_SIZES, "ffn_dim": 48, "max_position_embeddings": 64}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FUSED_LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_OPT_LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_SHARD_SIZE = "12KB"


@dataclass(frozen=True)
class Architecture:
    """One architecture, or one way of writing it.

    Attributes:
        config: Makes its configuration.
        settings: What the configuration is made from, beside the vocabulary.
        linears: The names of all its linear layers, as LoRA targets.
        without_head: Whether the files hold the base model alone and its names no prefix, as GPT-2's on the Hub.
    """

    config: Callable[..., PretrainedConfig]
    settings: Mapping[str, Any] = field(default_factory=dict)
    linears: tuple[str, ...] = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
    without_head: bool = False


_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_GPT2_LINEARS = ("c_attn", "c_proj", "c_fc")
_DEEPSEEK_LINEARS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(LlamaConfig, {**_GATED_SIZES, "attention_bias": True, "mlp_bias": True}),
    "mistral": Architecture(MistralConfig, {**_GATED_SIZES, "sliding_window": 8}),
    "gemma": Architecture(GemmaConfig, {**_GATED_SIZES, "head_dim": 8}),
    "gemma2": Architecture(Gemma2Config, {**_GATED_SIZES, "head_dim": 8, "sliding_window": 8}),
    "gemma3": Architecture(Gemma3TextConfig, {**_GATED_SIZES, "head_dim": 8, "sliding_window": 8}),
    "qwen2": Architecture(Qwen2Config, {**_GATED_SIZES, "tie_word_embeddings": True}),
    "qwen3": Architecture(Qwen3Config, {**_GATED_SIZES, "head_dim": 8}),
    "phi3": Architecture(
        Phi3Config,
        {**_GATED_SIZES, "original_max_position_embeddings": 64},
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    "gpt2": Architecture(GPT2Config, _GPT2, _GPT2_LINEARS),
    "gpt2-without-head": Architecture(GPT2Config, _GPT2, _GPT2_LINEARS, without_head=True),
    "gpt_neox": Architecture(GPTNeoXConfig, {**_PLAIN_SIZES, "intermediate_size": 48}, _FUSED_LINEARS),
    "bloom": Architecture(BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}, _FUSED_LINEARS),
    "falcon": Architecture(FalconConfig, _PLAIN_SIZES, _FUSED_LINEARS),
    "falcon-alibi": Architecture(
        FalconConfig,
        {**_PLAIN_SIZES, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
        _FUSED_LINEARS,
    ),
    "falcon-new": Architecture(
        FalconConfig, {**_PLAIN_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2}, _FUSED_LINEARS
    ),
    "opt": Architecture(OPTConfig, {**_OPT_SIZES, "word_embed_proj_dim": 32}, _OPT_LINEARS),
    "opt-projected": Architecture(
        OPTConfig,
        {**_OPT_SIZES, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        (*_OPT_LINEARS, "project_in", "project_out"),
    ),
    "mixtral": Architecture(MixtralConfig, MIXTURES["mixtral"], _ATTENTION),
    "qwen3_moe": Architecture(Qwen3MoeConfig, MIXTURES["qwen3_moe"], _ATTENTION),
    "gpt_oss": Architecture(GptOssConfig, MIXTURES["gpt_oss"], _ATTENTION),
    "deepseek_v3": Architecture(DeepseekV3Config, MIXTURES["deepseek_v3"], _DEEPSEEK_LINEARS),
}

# Some of their matrices are multiplied with outside of a module, where no input of them can be seen.
REFUSED: Mapping[str, Architecture] = {
    "llama4_text": Architecture(Llama4TextConfig, REFUSED_MIXTURES["llama4_text"]),
    "mamba": Architecture(MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2}),
}


def write_checkpoint(
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    tuned: bool = False,
    dtype: torch.dtype = torch.float32,
    sharded: bool = False,
) -> Path:
    """Write a model of random weights with its tokenizer.

    Args:
        folder: Where to.
        name: One of ``ARCHITECTURES`` or ``REFUSED``.
        seed: Of the weights.
        tuned: Whether to write a fine-tune of the model of that seed: every tensor moved a little, biases, norms and
            embeddings too.
        dtype: The type that the files hold.
        sharded: Whether to write several weight files.
    """
    architecture = {**ARCHITECTURES, **REFUSED}[name]
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    config = architecture.config(**special, **architecture.settings, initializer_range=0.2)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _move(model, 0.1)
    if tuned:
        _move(model, 0.02)
    model.to(dtype)
    saved = model.base_model if architecture.without_head else model
    saved.save_pretrained(folder, max_shard_size=_SHARD_SIZE if sharded else "1GB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


def _move(model: torch.nn.Module, spread: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
