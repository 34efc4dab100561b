"""Models that read more than text: their text decoder is repaired, and nothing else of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from antidote_llm.models import open_model, resolve_target
from tests import tiny
from tests.fine_tunes import tensors_of, write_fine_tune

_TEXT = {
    "vocab_size": tiny.VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": None,
    "sliding_window": 8,
}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def write_gemma3(folder: Path, *, vision_layers: int) -> Path:
    """Write a Gemma 3 with a vision tower."""
    torch.manual_seed(0)
    vision = {**_VISION, "num_hidden_layers": vision_layers}
    tokens = {"image_token_index": 34, "boi_token_index": 33, "eoi_token_index": 32, "mm_tokens_per_image": 4}
    Gemma3ForConditionalGeneration(Gemma3Config(text_config=_TEXT, vision_config=vision, **tokens)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("vision_layers", [1, 2, 3])
@pytest.mark.parametrize("target", ["delta", "weight"])
def test_the_text_decoder_is_repaired_however_deep_the_vision_tower(
    tmp_path: Path, vision_layers: int, target: str
) -> None:
    aligned = write_gemma3(tmp_path / "aligned", vision_layers=vision_layers)
    tuned = write_fine_tune(tmp_path / "tuned", aligned)
    found = resolve_target(open_model(str(tuned)), target, str(aligned) if target == "delta" else None)  # type: ignore[arg-type]
    keys = {site.key for site in found.sites}
    assert len(keys) == 2 * 7 and all(key.startswith("language_model.model.layers.") for key in keys)
    if target == "delta":
        assert keys | {tensor.key for tensor in found.outside} == tensors_of(tuned).keys()
