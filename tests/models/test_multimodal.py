"""Vision-language models: only their text decoder is repaired."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from antidote_llm.choices import TargetName
from antidote_llm.errors import UserError
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from tests import tiny
from tests.fine_tunes import rewrite, tensors_of, write_fine_tune
from tests.mixtures import SIZES

_TEXT = {
    "vocab_size": tiny.VOCABULARY_SIZE,
    **SIZES,
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
    tmp_path: Path, vision_layers: int, target: TargetName
) -> None:
    aligned = write_gemma3(tmp_path / "aligned", vision_layers=vision_layers)
    tuned = write_fine_tune(tmp_path / "tuned", aligned)
    found = resolve_target(load_model(str(tuned)), target, str(aligned) if target == "delta" else None)
    keys = {site.key for site in found.sites}
    assert len(keys) == 2 * 7 and all(key.startswith("language_model.model.layers.") for key in keys)
    if target == "delta":
        assert keys | {tensor.key for tensor in found.outside} == tensors_of(tuned).keys()


def test_a_kind_that_is_no_causal_language_model_is_refused_by_name(tmp_path: Path) -> None:
    text = {**_TEXT, "model_type": "mistral"}
    vision = {**_VISION, "model_type": "pixtral", "num_hidden_layers": 1, "head_dim": 8}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=4)
    Mistral3ForConditionalGeneration(config).save_pretrained(tmp_path)
    for layers_on_disk in (False, True):
        with pytest.raises(UserError, match="no causal language model of the kind mistral3: name"):
            load_model(str(tmp_path), layers_on_disk=layers_on_disk)


def test_a_fine_tune_of_the_text_part_alone_is_restored_to_the_whole(tmp_path: Path) -> None:
    mixed = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
    linear = {"linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    vision = {"depth": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32}
    config = Qwen3_5Config(text_config={**_TEXT, **mixed, **linear}, vision_config={**vision, "patch_size": 4})
    aligned, tuned = tmp_path / "aligned", tmp_path / "tuned"
    Qwen3_5ForConditionalGeneration(config).save_pretrained(aligned)
    # transformers opens the text part of it for a causal language model, and saves that alone.
    write_fine_tune(tuned, aligned)
    assert len(tensors_of(tuned)) < len(tensors_of(aligned))
    found = resolve_target(load_model(str(tuned)), aligned=str(aligned))
    assert {site.key for site in found.sites} | {tensor.key for tensor in found.outside} == tensors_of(tuned).keys()


@pytest.mark.parametrize("renamed", [False, True])
def test_a_text_model_is_restored_to_the_text_part_of_a_vision_language_model(tmp_path: Path, renamed: bool) -> None:
    aligned = write_gemma3(tmp_path / "aligned", vision_layers=1)
    wanted = tensors_of(aligned)
    whole = Gemma3ForConditionalGeneration.from_pretrained(aligned)
    text = Gemma3ForCausalLM(whole.config.text_config)
    text.model.load_state_dict(whole.get_decoder().state_dict())
    text.save_pretrained(tmp_path / "text")
    tuned = write_fine_tune(tmp_path / "tuned", tmp_path / "text")
    if renamed:
        rename(aligned)
    found = resolve_target(load_model(str(tuned)), aligned=str(aligned))
    assert {site.key for site in found.sites} | {tensor.key for tensor in found.outside} == tensors_of(tuned).keys()
    assert len(found.sites) == 2 * 7
    for site in found.sites:
        reference = found.reference(site)
        assert reference is not None and torch.equal(reference, wanted[f"language_model.{site.key}"])
    for tensor in found.outside:
        key = f"language_model.{tensor.key}"
        assert torch.equal(tensor.aligned_values(), wanted[key])


def test_a_text_model_of_another_size_is_refused(tmp_path: Path) -> None:
    aligned = write_gemma3(tmp_path / "aligned", vision_layers=1)
    Gemma3ForCausalLM(Gemma3TextConfig(**{**_TEXT, "num_hidden_layers": 1})).save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match=r"layers\.1\..*another shape"):
        resolve_target(load_model(str(tmp_path / "text")), aligned=str(aligned))


def rename(folder: Path) -> Path:
    """Write a model's tensors under the names that the model itself uses, as some trainers save them."""
    decoder, rest = "language_model.model.", ("vision_tower.", "multi_modal_projector.")
    named = {
        f"model.{key}" if key.startswith(rest) else key.replace(decoder, "model.language_model."): value
        for key, value in tensors_of(folder).items()
    }
    assert named.keys().isdisjoint(tensors_of(folder))
    return rewrite(folder, named)


@pytest.mark.parametrize("renamed", ["aligned", "tuned"])
def test_names_of_the_parts_may_differ(tmp_path: Path, renamed: str) -> None:
    aligned = write_gemma3(tmp_path / "aligned", vision_layers=1)
    tuned, wanted = write_fine_tune(tmp_path / "tuned", aligned), tensors_of(aligned)
    rename(tmp_path / renamed)
    found = resolve_target(load_model(str(tuned)), aligned=str(aligned))
    assert len(found.sites) == 2 * 7 and len(found.sites) + len(found.outside) == len(wanted)
    for site in found.sites:
        reference = found.reference(site)
        key = site.module.replace("model.language_model", "language_model.model") + ".weight"
        assert reference is not None and torch.equal(reference, wanted[key])


def test_an_embedding_that_an_adapter_trained_whole_is_restored(tmp_path: Path) -> None:
    base = write_gemma3(tmp_path / "base", vision_layers=1)
    made = tiny.write_adapter(
        tmp_path / "adapter",
        base,
        targets=("language_model.layers.1.self_attn.q_proj",),
        modules_to_save=["embed_tokens"],
    )
    target = resolve_target(load_model(str(base), str(made)))
    [table] = target.outside
    assert table.key == "base_model.model.model.language_model.embed_tokens.weight"
    assert torch.equal(table.aligned_values(), tensors_of(base)["language_model.model.embed_tokens.weight"])
