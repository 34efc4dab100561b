"""The architectures of the miniature's models, each of about a million parameters."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from antidote_llm.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_WIDTH, _LAYERS, _HEADS, _POSITIONS = 128, 4, 8, 256
# Larger than usual: at this width, the usual 0.02 leaves almost no gradient for the first hundred steps.
_INITIAL_STD = 0.1


@dataclass(frozen=True)
class Architecture:
    """How one architecture's configuration is made, and its names of the layers for queries, keys and values."""

    # Takes the settings that all architectures share.
    config: Callable[[dict[str, Any]], PretrainedConfig]
    query_key_value: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")


def _gated(kind: str, **more: Any) -> Callable[[dict[str, Any]], PretrainedConfig]:
    """Return what makes a configuration of a class of transformers, for models with a gated feed-forward part."""

    def config(shared: dict[str, Any]) -> PretrainedConfig:
        import transformers

        sizes: dict[str, Any] = {
            "hidden_size": _WIDTH,
            "intermediate_size": 3 * _WIDTH,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "max_position_embeddings": _POSITIONS,
        }
        return getattr(transformers, kind)(**{**shared, **sizes, **more})

    return config


def _gpt2(shared: dict[str, Any]) -> PretrainedConfig:
    from transformers import GPT2Config

    return GPT2Config(
        **shared,
        n_embd=_WIDTH,
        n_layer=_LAYERS,
        n_head=_HEADS,
        n_positions=_POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


ARCHITECTURES = {
    "llama": Architecture(_gated("LlamaConfig")),
    # Unlike llama, it has grouped-query attention and sliding-window attention.
    "mistral": Architecture(_gated("MistralConfig", num_key_value_heads=_HEADS // 4, sliding_window=32)),
    "gemma": Architecture(_gated("GemmaConfig", head_dim=_WIDTH // _HEADS)),
    "qwen3": Architecture(_gated("Qwen3Config", head_dim=_WIDTH // _HEADS)),
    "gpt2": Architecture(_gpt2, ("c_attn",)),
}


def architecture(name: str) -> Architecture:
    """Return an architecture.

    Raises:
        UserError: The miniature does not come in it.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"unknown architecture '{name}': {hint}the miniature comes in {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def model_config(name: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the configuration of the miniature's models.

    Raises:
        UserError: The architecture is unknown.
    """
    shared = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "initializer_range": _INITIAL_STD,
        "tie_word_embeddings": True,
    }
    return architecture(name).config(shared)


def untrained_model(name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a model of random weights, the same for the same seed.

    Raises:
        UserError: The architecture is unknown.
    """
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(seed)
    return AutoModelForCausalLM.from_config(model_config(name, tokenizer))
