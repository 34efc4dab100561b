"""Checkpoints and rows to time on: llamas of random weights with a LoRA adapter, rows of random tokens."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.choices import DtypeName
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.models.load import LoadedModel, load_model

# How far the lengths of rows spread: the standard deviation of their logarithm.
SPREAD = 0.6


@dataclass(frozen=True)
class Shape:
    """A model and its calibration rows, by size.

    Attributes:
        width: The hidden size.
        inner: The width of the feed-forward part.
        layers: How many decoder layers.
        heads: How many attention heads.
        rank: The adapter's rank, on q, k and v.
        rows: How many calibration rows.
        tokens: How many tokens they have together.
        vocabulary: How many token ids.
        tied: Whether the head has the embeddings' weights.
    """

    width: int
    inner: int
    layers: int
    heads: int
    rank: int
    rows: int
    tokens: int
    vocabulary: int = 4096
    tied: bool = True

    @property
    def linear_parameters(self) -> int:
        """The parameters of the decoder's matrices, the adapter's included: what a token is multiplied by."""
        base = 4 * self.width**2 + 3 * self.width * self.inner
        return self.layers * (base + 3 * 2 * self.rank * self.width)

    @property
    def parameters(self) -> int:
        """All parameters, the adapter's included."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.width
        return self.linear_parameters + embeddings + (2 * self.layers + 1) * self.width


SHAPES = {
    "1M": Shape(width=128, inner=344, layers=3, heads=4, rank=16, rows=200, tokens=7_000),
    "27M": Shape(width=512, inner=1376, layers=8, heads=8, rank=64, rows=400, tokens=40_000),
}


def write_checkpoint(shape: Shape, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Write ``base`` and ``adapter`` below a folder; a finished one is left as it is."""
    done = folder / "shape.json"
    described = json.dumps({**vars(shape), "dtype": str(dtype)})
    if done.is_file() and done.read_text() == described:
        return
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(folder / "base", max_shard_size="2GB")
    lora = LoraConfig(r=shape.rank, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02)
    adapted.peft_config["default"].base_model_name_or_path = str((folder / "base").resolve())
    adapted.save_pretrained(folder / "adapter")
    done.write_text(described)


def opened(folder: Path, dtype: DtypeName = "auto", device: str = "cpu") -> LoadedModel:
    """Open what :func:`write_checkpoint` wrote."""
    return load_model(str(folder / "base"), str(folder / "adapter"), dtype=dtype, device=device)


def random_rows(shape: Shape) -> list[TokenizedRow]:
    """Draw rows of log-normal lengths that add up to the shape's tokens."""
    draw = random.Random(0)
    drawn = [draw.lognormvariate(0.0, SPREAD) for _ in range(shape.rows)]
    lengths = [max(4, round(each * shape.tokens / sum(drawn))) for each in drawn]
    lengths[lengths.index(max(lengths))] += shape.tokens - sum(lengths)
    return [
        TokenizedRow([draw.randrange(1, shape.vocabulary) for _ in range(length)], response_start=length // 2)
        for length in lengths
    ]
