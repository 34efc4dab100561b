from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.size_table import MODELS, Model, table

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_table() -> None:
    assert table() in (ROOT / "docs" / "results" / "cost.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("tied", [True, False])
def test_entries_are_those_of_a_model(tied: bool) -> None:
    model = Model("tiny", width=32, inner=48, layers=2, heads=4, key_heads=2, vocabulary=64, tied=tied)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    matrices = [each for each in LlamaForCausalLM(config).parameters() if each.ndim == 2]
    assert sum(each.numel() for each in matrices) == model.parameters


def test_the_best_known_model_has_the_size_that_it_is_known_by() -> None:
    seven = next(model for model in MODELS if model.name.startswith("7B"))
    assert seven.parameters == pytest.approx(6.74e9, rel=0.001)
