"""Records a run: the weights before every step, its rows and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.training.batches import Batch, Collator, Example
from antidote_llm.training.defense import Defense, StageData, TrainingJob
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import RunOptions, train
from tests import tiny

ROWS = [Record(prompt=tiny.words(2 + i % 4, i), response=tiny.words(1 + i % 3, 50 + i)) for i in range(8)]
DATA = StageData(Renderer(tiny.tokenizer()), ROWS)
TRAINING = TrainingSettings(
    learning_rate=1e-2, max_steps=2, batch_size=4, weight_decay=0, max_gradient_norm=0, batching="ordered"
)


@dataclass
class Step:
    """The weights before one step, its micro-batches, its gradients and its loss."""

    weights: dict[str, Tensor]
    window: list[Batch]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0


def llama(**overrides: Any) -> Any:
    """Return a two-layer llama with random weights, large enough for distinct outputs."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **special, initializer_range=0.3, **overrides))


def job_of(defense: Defense, training: TrainingSettings = TRAINING, **settings: Any) -> TrainingJob:
    """Return a defense's job on eight ragged rows."""
    return defense.job(DATA, training, defense.configure(settings))


def watch(model: Any, job: TrainingJob, running: RunOptions | None = None) -> list[Step]:
    """Train, and return the steps."""
    steps: list[Step] = []
    objective: Any = job.objective

    def begin(window: Sequence[Batch]) -> None:
        weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        steps.append(Step(weights, list(window)))

    def end() -> None:
        steps[-1].gradients = {
            name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
        }

    objective.before_step = _first(begin, objective.before_step)
    objective.adjust_gradients = _first(end, objective.adjust_gradients)
    result = train(model, job.examples, job.training, objective, running)
    for step, loss in zip(steps, result.losses, strict=True):
        step.loss = loss
    return steps


def whole(job: TrainingJob, step: int) -> Batch:
    """Return all rows of a step as one batch."""
    size, count = job.training.batch_size * job.training.accumulation, len(job.examples)
    rows: list[Example] = [job.examples[index % count] for index in range(step * size, (step + 1) * size)]
    return Collator(0)(rows)


def without_dropout(model: Any) -> Any:
    """Set a model's dropout to zero, and return the model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the distance of gradients from the expected ones, relative to their norm."""
    assert found.keys() == wanted.keys()
    apart = sum(float((found[name] - wanted[name]).double().square().sum()) for name in wanted)
    return float((apart / sum(float(value.double().square().sum()) for value in wanted.values())) ** 0.5)


def hooks(model: nn.Module) -> int:
    """Return how many forward hooks a model has."""
    return sum(len(module._forward_hooks) for module in model.modules())


def _first(ours: Callable[..., None], theirs: Callable[..., None]) -> Callable[..., None]:
    def both(*arguments: Any) -> None:
        ours(*arguments)
        theirs(*arguments)

    return both


def with_and_without_checkpointing(
    defense: Defense, training: TrainingSettings, lora: LoraSettings | None
) -> tuple[Step, Step]:
    """Return the second step of a run without gradient checkpointing, and of one with it."""
    found = []
    for checkpointing in (False, True):
        model = llama(attention_dropout=0.2)
        model = attach_lora(model, lora, 0) if lora else model
        job = job_of(defense, training.model_copy(update={"gradient_checkpointing": checkpointing}))
        found.append(watch(model, job)[1])
    return found[0], found[1]
