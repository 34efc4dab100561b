"""Mixtures of experts as configurations of tiny models, and what every expert of one sees, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from tests import tiny

SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_ROUTED = {**SIZES, "num_experts_per_tok": 2}
_LOCAL = {**_ROUTED, "num_local_experts": 4}
_SMALL = {**_ROUTED, "num_experts": 4, "moe_intermediate_size": 16}
_SHARED = {**_SMALL, "shared_expert_intermediate_size": 16}
LATENT_ATTENTION: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
}
_LATENT = {**_ROUTED, **LATENT_ATTENTION}
_LINEAR_ATTENTION: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_LINEAR_ATTENTION |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_LINEAR_ATTENTION |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}

MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "mixtral": _LOCAL,
    "qwen3_moe": _SMALL,
    "gpt_oss": {**_LOCAL, "sliding_window": 8},
    "deepseek_v3": _LATENT,
    "qwen2_moe": _SHARED,
    "olmoe": {**_ROUTED, "num_experts": 4},
    "glm4_moe": {**_LATENT, "n_group": 1, "n_shared_experts": 1},
    "qwen3_next": {**_SHARED, **_LINEAR_ATTENTION},
    "phimoe": _LOCAL,
    "granitemoe": _LOCAL,
    "minimax_m2": _LOCAL,
    "hunyuan_v1_moe": {**_ROUTED, "num_experts": 4, "moe_topk": 2},
}
# Experts that transformers does not compute through its interface, or in a way that no hook can see.
REFUSED_MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "llama4_text": {**_LOCAL, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
    "jetmoe": {**_LOCAL, "kv_channels": 8},
    "longcat_flash": {
        **{name: value for name, value in _LATENT.items() if name not in ("num_hidden_layers", "head_dim")},
        "num_layers": 1,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
}


def config(name: str) -> PretrainedConfig:
    """Return a tiny configuration."""
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    made: PretrainedConfig = AutoConfig.for_model(
        name, **special, **{**MIXTURES, **REFUSED_MIXTURES}[name], initializer_range=0.2
    )
    return made


def write(folder: Path, name: str) -> Path:
    """Write a model of random weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(name), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def inputs_of_experts(model: nn.Module, row: Sequence[int]) -> dict[tuple[str, str, int], tuple[list[int], Tensor]]:
    """Return what goes into every expert's matrices for one row, and which tokens it is of, as the router chose.

    By the experts' module, the name of the stack (the down projection's, or the one before it), and the expert.
    """
    calls: dict[str, tuple[Any, ...]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, args: calls.update({name: args})

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "down_proj", None), nn.Parameter)
    ]
    model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    found: dict[tuple[str, str, int], tuple[list[int], Tensor]] = {}
    for name, (hidden_ND, index_NK, _) in calls.items():
        module: Any = model.get_submodule(name)
        for expert in range(len(module.down_proj)):
            if tokens := [token for token, choices in enumerate(index_NK.tolist()) if expert in choices]:
                weight = module.gate_up_proj[expert]
                both = functional.linear(hidden_ND[tokens], weight.T if module.is_transposed else weight)
                both = both + module.gate_up_proj_bias[expert] if module.has_bias else both
                found[name, "gate_up_proj", expert] = tokens, hidden_ND[tokens]
                found[name, "down_proj", expert] = tokens, module._apply_gate(both)
    return found
