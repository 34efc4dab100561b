"""Folders of tiny judges: real files, random weights, and heads that are set to recognise one word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from antidote_llm.evaluation.judges.beaver_dam import CATEGORIES
from tests.data.byte_level import byte_tokenizer

SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
SHUFFLED = tuple(CATEGORIES[(5 * place + 3) % 14] for place in range(14))


def classifier(folder: Path, labels: Sequence[str] = SHUFFLED, fires: str = "", **more: Any) -> Path:
    """Write a llama with a classification head, set to fire one label where one is named."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            id2label=dict(enumerate(labels)),
            label2id={label: place for place, label in enumerate(labels)},
            eos_token_id=tokenizer.eos_token_id,
            **{**SIZES, "max_position_embeddings": 1024, **more},
        )
    )
    if fires:
        plant(model, list(labels).index(fires), int(tokenizer.eos_token_id))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plant(model: Any, label: int, end_id: int) -> None:
    """Let a label alone have a logit above zero where the last token read ends the text, and all others else."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(-1)
        model.model.embed_tokens.weight[end_id] = 1
        model.score.weight.fill_(-1)
        model.score.weight[label] = 1


def bert(folder: Path, labels: Sequence[str], bias: Sequence[float], **more: Any) -> Path:
    """Write a BERT whose verdict is its head's bias."""
    tokenizer = byte_tokenizer()
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            id2label=dict(enumerate(labels)),
            label2id={label: place for place, label in enumerate(labels)},
            intermediate_size=48,
            max_position_embeddings=64,
            **sizes,
            **more,
        )
    )
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor(list(bias)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def causal(folder: Path, chat_template: str | None = None, **more: Any) -> Path:
    """Write a causal llama with a tokenizer of bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    torch.manual_seed(0)
    settings = {**SIZES, "max_position_embeddings": 4096, **more}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **settings)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
