"""A model that does more between its layers than pass hidden states on is not run layer by layer, but refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.errors import UserError
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from tests.engine_architectures import write
from tests.engines import assert_engines_agree, assert_same_bits, statistics


def plain_forward(between: Callable[..., Tensor]) -> Callable[..., BaseModelOutputWithPast]:
    """Return llama's forward pass with another loop over its layers."""

    def forward(
        self: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, use_cache: bool
    ) -> BaseModelOutputWithPast:
        del use_cache
        hidden_BTD = self.embed_tokens(input_ids)
        handed = {
            "attention_mask": create_causal_mask(
                config=self.config,
                inputs_embeds=hidden_BTD,
                attention_mask=attention_mask,
                past_key_values=None,
                position_ids=position_ids,
            ),
            "position_embeddings": self.rotary_emb(hidden_BTD, position_ids=position_ids),
        }
        return BaseModelOutputWithPast(last_hidden_state=between(self, hidden_BTD, handed))

    return forward


def plain(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    for layer in model.layers:
        hidden_BTD = layer(hidden_BTD, **handed)
    return hidden_BTD


def scaled(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    for layer in model.layers:
        hidden_BTD = 1.5 * layer(hidden_BTD, **handed)
    return hidden_BTD


def with_the_embedding(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    embedded_BTD = hidden_BTD
    for layer in model.layers:
        hidden_BTD = layer(hidden_BTD, **handed) + 0 * embedded_BTD.sum() + 1
    return hidden_BTD


def with_tables_of_hidden_states(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    for layer in model.layers:
        cosine, sine = handed["position_embeddings"]
        hidden_BTD = layer(hidden_BTD, **{**handed, "position_embeddings": (cosine * hidden_BTD.mean(), sine)})
    return hidden_BTD


def with_an_earlier_output(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    """Average the last two outputs from the second on: equal outputs hide it."""
    outputs: list[Tensor] = []
    for layer in model.layers:
        outputs.append(layer(hidden_BTD, **handed))
        hidden_BTD = (outputs[-1] + outputs[-2]) / 2 if len(outputs) > 1 else outputs[-1]
    return hidden_BTD


def backwards(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    for layer in reversed(model.layers):
        hidden_BTD = layer(hidden_BTD, **handed)
    return hidden_BTD


def twice(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    return plain(model, plain(model, hidden_BTD, handed), handed)


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (scaled, "decoder layer 1 gets something else in the model's own forward pass"),
        (with_the_embedding, "decoder layer 1 gets something else in the model's own forward pass"),
        (with_tables_of_hidden_states, "decoder layer 1 gets something else in the model's own forward pass"),
        (with_an_earlier_output, "decoder layer 2 gets something else in the model's own forward pass"),
        (backwards, "decoder layer 0 gets something else|does not use each of its decoder layers once and in order"),
        (twice, "does not use each of its decoder layers once and in order"),
    ],
)
@pytest.mark.parametrize("batch_tokens", [24, 1000])
def test_a_model_that_does_more_between_its_layers_is_refused(
    between: Callable[..., Tensor], words: str, batch_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CalibrationSettings(batch_tokens=batch_tokens)
    folder = write(tmp_path / "model", "llama")
    monkeypatch.setattr(LlamaModel, "forward", plain_forward(plain))
    assert_engines_agree(folder, settings=settings)
    monkeypatch.setattr(LlamaModel, "forward", plain_forward(between))
    opened = load_model(str(folder), layers_on_disk=True)
    with pytest.raises(UserError, match=words) as refusal:
        statistics(opened, resolve_target(opened, "weight"), settings)
    assert "pass engine memory" in str(refusal.value)


def return_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    own = LlamaDecoderLayer.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        hidden_BTD = own(self, *args, **kwargs)
        return hidden_BTD, hidden_BTD.mean()

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)


def of_pairs(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    for layer in model.layers:
        hidden_BTD, _ = layer(hidden_BTD, **handed)
    return hidden_BTD


def to_the_next_layer(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    for layer in model.layers:
        hidden_BTD, more = layer(hidden_BTD, **handed)
        handed = {**handed, "more": more}
    return hidden_BTD


def to_the_third_layer(model: Any, hidden_BTD: Tensor, handed: dict[str, Any]) -> Tensor:
    first = None
    for index, layer in enumerate(model.layers):
        hidden_BTD, more = layer(hidden_BTD, **handed, **({"more": first} if index == 2 else {}))
        first = more if index == 0 else first
    return hidden_BTD


def test_layers_may_return_tuples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model", "llama")
    *_, bare = assert_engines_agree(folder)
    return_pairs(monkeypatch)
    monkeypatch.setattr(LlamaModel, "forward", plain_forward(of_pairs))
    *_, moments = assert_engines_agree(folder)
    assert_same_bits(moments, bare)


@pytest.mark.parametrize(("between", "layer"), [(to_the_next_layer, 1), (to_the_third_layer, 2)])
def test_a_model_that_passes_more_than_hidden_states_to_other_layers_is_refused(
    between: Callable[..., Tensor], layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model", "llama")
    return_pairs(monkeypatch)
    monkeypatch.setattr(LlamaModel, "forward", plain_forward(between))
    opened = load_model(str(folder), layers_on_disk=True)
    with pytest.raises(UserError, match=f"decoder layer {layer} gets something else"):
        statistics(opened, resolve_target(opened, "weight"))
