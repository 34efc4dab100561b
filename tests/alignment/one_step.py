"""The gradients of one optimiser step, after the defense and before clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.training.defense import StageData, TrainingJob
from antidote_llm.training.trainer import train
from tests import tiny

_PROMPTS = [tiny.words(2 + index % 3, index) for index in range(8)]
REFUSALS = [Record(prompt=prompt, response=tiny.words(2 + i % 4, 50 + i)) for i, prompt in enumerate(_PROMPTS)]
HARMFUL = [Record(prompt=prompt, response=tiny.words(3 + i % 3, 150 + i)) for i, prompt in enumerate(_PROMPTS[:5])]
DATA = StageData(Renderer(tiny.tokenizer()), REFUSALS, HARMFUL)


def small_model(**overrides: Any) -> Any:
    """Return a llama of two layers with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **special, "initializer_range": 0.3, **overrides}))


def step_gradients(job: TrainingJob, model: Any) -> dict[str, Tensor]:
    """Take one step and return its gradients."""
    found: dict[str, Tensor] = {}
    objective = job.objective
    adjust = objective.adjust_gradients

    def keep() -> None:
        adjust()
        found.update({name: value.grad.clone() for name, value in objective.session.parameters()})  # type: ignore[union-attr]

    objective.adjust_gradients = keep  # type: ignore[method-assign]
    train(model, job.examples, job.training.model_copy(update={"max_steps": 1}), objective)
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Assert that every tensor's distance is at most a share of the norm of all tensors together."""
    assert found.keys() == wanted.keys()
    length = torch.stack([value.double().norm() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= tolerance * length, name
