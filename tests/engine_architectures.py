"""Architectures as configurations of tiny models, deep enough that every kind of layer that they alternate occurs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tiny
from tests.mixtures import LATENT_ATTENTION

_ATTENTION: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_PLAIN = {**_ATTENTION, "intermediate_size": 48}
_GATED = {**_PLAIN, "num_key_value_heads": 2}
_HEADS = {**_GATED, "head_dim": 8}
_SLIDING = {**_HEADS, "sliding_window": 4}
_PARALLEL = {**_GATED, "num_key_value_heads": 4}
_OPT = {**_ATTENTION, "ffn_dim": 48, "word_embed_proj_dim": 32}
_GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 48}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 16}
_LATENT = {**_PARALLEL, **LATENT_ATTENTION, "n_shared_experts": 1, "num_experts_per_tok": 2}
_DELTA_NET: Mapping[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

# Both engines collect statistics of every matrix of their decoder layers.
COVERED: Mapping[str, Mapping[str, Any]] = {
    "llama": _GATED,
    "mistral": _SLIDING,
    "ministral": _SLIDING,
    "qwen2": {**_GATED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": _HEADS,
    "gemma": _HEADS,
    "gemma2": _SLIDING,
    "gemma3_text": {**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi": _GATED,
    "phi3": {**_GATED, "original_max_position_embeddings": 64, "sliding_window": 4},
    "gpt_neox": _PLAIN,
    "gpt_neox_japanese": _ATTENTION,
    "gpt2": _GPT,
    "gptj": {**_GPT, "rotary_dim": 8},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 4,
    },
    "gpt_bigcode": _GPT,
    "codegen": {**_GPT, "rotary_dim": 8},
    "biogpt": _PLAIN,
    "xglm": {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
    "opt": _OPT,
    "falcon": _ATTENTION,
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    "olmo": _GATED,
    "olmo2": _GATED,
    "olmo3": {**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "cohere": _GATED,
    "cohere2": {**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "stablelm": _GATED,
    "starcoder2": {**_GATED, "sliding_window": 4},
    "persimmon": _PLAIN,
    "granite": _GATED,
    "glm": _HEADS,
    "glm4": _HEADS,
    "helium": _HEADS,
    "smollm3": {**_GATED, "no_rope_layers": [1, 0, 1]},
    "nemotron": _GATED,
    "ernie4_5": _HEADS,
    "seed_oss": _HEADS,
    "exaone4": {**_SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "hunyuan_v1_dense": _HEADS,
    "arcee": _HEADS,
    "apertus": _HEADS,
    "diffllama": _GATED,
    "bitnet": _GATED,
    "lfm2": {**_GATED, "layer_types": ["conv", "full_attention", "conv"]},
    "mixtral": {**_SLIDING, **_LOCAL},
    "phimoe": {**_GATED, **_LOCAL},
    "qwen2_moe": {**_GATED, **_SHARED, "decoder_sparse_step": 2},
    "qwen3_moe": {**_HEADS, **_EXPERTS, "mlp_only_layers": [1]},
    "olmoe": {**_GATED, "num_experts": 4, "num_experts_per_tok": 2},
    "flex_olmo": {**_GATED, "num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**_SLIDING, **_LOCAL, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "granitemoe": {**_GATED, **_LOCAL},
    "granitemoeshared": {**_GATED, **_LOCAL, "shared_intermediate_size": 16},
    "deepseek_v2": {**_LATENT, "n_group": 1, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "glm4_moe": {**_LATENT, "head_dim": 8, "n_group": 1},
    "dots1": {**_LATENT, "head_dim": 8, "n_group": 1},
    "minimax_m2": {**_HEADS, **_LOCAL},
    "hunyuan_v1_moe": {**_HEADS, "num_experts": 4, "moe_topk": 2},
    "ernie4_5_moe": {
        **_HEADS,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 1,
    },
    "qwen3_next": {**_HEADS, **_SHARED, **_DELTA_NET},
    "qwen3_5_text": {**_HEADS, **_DELTA_NET},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
    },
    "bamba": {**_GATED, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "minimax": {**_HEADS, **_LOCAL, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "ctrl": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "dff": 48},
    "gemma4_text": {
        **_SLIDING,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "vocab_size_per_layer_input": tiny.VOCABULARY_SIZE,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
    },
}

# Parameters of two and more axes in the decoder layers that are no sites: routers, convolutions along the tokens, and
# what experts add to, a row for each.
_CONVOLUTIONS = ("linear_attn.conv1d.weight",)
_ROUTER = ("mlp.gate.weight",)
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "lfm2": ("conv.conv.weight",),
    "mixtral": _ROUTER,
    "phimoe": ("mlp.router.weight",),
    "qwen2_moe": (*_ROUTER, "mlp.shared_expert_gate.weight"),
    "qwen3_moe": _ROUTER,
    "olmoe": _ROUTER,
    "flex_olmo": _ROUTER,
    "gpt_oss": ("mlp.router.weight", "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"),
    "granitemoe": ("block_sparse_moe.router.weight",),
    "granitemoeshared": ("block_sparse_moe.router.weight",),
    "deepseek_v2": _ROUTER,
    "deepseek_v3": _ROUTER,
    "glm4_moe": _ROUTER,
    "dots1": _ROUTER,
    "minimax_m2": _ROUTER,
    "hunyuan_v1_moe": ("mlp.gate.wg.weight",),
    "ernie4_5_moe": (*_ROUTER, "mlp.gate.moe_statics.e_score_correction_bias"),
    "qwen3_next": (*_CONVOLUTIONS, *_ROUTER, "mlp.shared_expert_gate.weight"),
    "qwen3_5_text": _CONVOLUTIONS,
    "mamba2": ("mixer.conv1d.weight",),
    "bamba": ("mamba.conv1d.weight",),
    "minimax": _ROUTER,
}
# To how many experts every mixture here sends a token.
CHOICES = 2

# Something in their decoder layers cannot be covered.
REFUSED: Mapping[str, Mapping[str, Any]] = {
    "llama4_text": {**_HEADS, **_LOCAL, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
    "jetmoe": {**_GATED, **_LOCAL, "kv_channels": 8},
    "longcat_flash": {
        **{name: value for name, value in _LATENT.items() if name != "num_hidden_layers"},
        "num_layers": 2,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "gemma3n_text": {
        **_SLIDING,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": tiny.VOCABULARY_SIZE,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
    "jamba": {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {
        **_GATED,
        "num_hidden_layers": 4,
        "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
    },
    "recurrent_gemma": {**_HEADS, "lru_width": 32, "attention_window_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32, "intermediate_size": 48},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


def write(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, *, sharded: bool = False, **settings: Any
) -> Path:
    """Write a model of random weights, its norms and biases random too.

    Args:
        folder: Where to.
        name: One of ``COVERED`` or ``REFUSED``.
        dtype: The type that the files hold.
        sharded: Whether to write several weight files.
        settings: What its configuration has otherwise.
    """
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    sizes = {**COVERED, **REFUSED}[name]
    config = AutoConfig.for_model(name, **{**special, **sizes, "initializer_range": 0.2, **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.to(dtype).save_pretrained(folder, max_shard_size="12KB" if sharded else "1GB")
    return folder
