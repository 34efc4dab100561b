from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from antidote_llm.alignment.booster import booster
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.training.batches import Batch
from antidote_llm.training.defense import StageData, TrainingJob, run_stage
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import train
from tests.alignment.one_step import DATA, HARMFUL, REFUSALS, assert_same, small_model, step_gradients
from tests.architectures import write_checkpoint

TRAINING = TrainingSettings(
    learning_rate=1e-2, max_steps=4, batch_size=4, weight_decay=0, warmup=0, batching="ordered", lora=None
)


def _job(training: TrainingSettings = TRAINING, **given: Any) -> TrainingJob:
    return booster.job(DATA, training, booster.configure(given))


def _carried(job: TrainingJob) -> list[Record]:
    """Return which harmful row each row carries."""
    by_ids = {tuple(row.input_ids): r for row, r in zip(DATA.renderer.rows(HARMFUL), HARMFUL, strict=True)}
    return [by_ids[tuple(example["harmful"]["input_ids"])] for example in job.examples]


def _loss(model: Any, records: Sequence[Record]) -> Tensor:
    """Return the mean cross-entropy of the responses' tokens, row by row."""
    losses = []
    for row in DATA.renderer.rows(records):
        log_probabilities = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        losses += [
            -log_probabilities[place - 1, row.input_ids[place]]
            for place in range(row.response_start, len(row.input_ids))
        ]
    return torch.stack(losses).mean()


def _harmful_step(model: Any, records: Sequence[Record], alpha: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the harmful rows before and after a step along the first; the model stays moved."""
    values = list(model.parameters())
    here = torch.autograd.grad(_loss(model, records), values)
    length = math.sqrt(sum(float((gradient**2).sum()) for gradient in here))
    with torch.no_grad():
        for value, gradient in zip(values, here, strict=True):
            value -= alpha * gradient / length
    return list(here), list(torch.autograd.grad(_loss(model, records), values))


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_it_is_the_papers_formula(batch_size: int, accumulation: int) -> None:
    job = _job(TRAINING.model_copy(update={"batch_size": batch_size, "accumulation": accumulation}))
    found = step_gradients(job, small_model().double())
    model = small_model().double()
    own = torch.autograd.grad(_loss(model, REFUSALS[:4]), list(model.parameters()))
    here, there = _harmful_step(model, _carried(job)[:4], 0.1)
    names = [name for name, _ in model.named_parameters()]
    wanted = [f + 5 * (h - h_there) for f, h, h_there in zip(own, here, there, strict=True)]
    assert_same(found, dict(zip(names, wanted, strict=True)), 1e-6)


def _trained(training: TrainingSettings = TRAINING, **given: Any) -> tuple[Any, tuple[float, ...]]:
    result = run_stage(small_model(), DATA, booster, training, booster.configure(given))
    return result.model, result.training.losses


def test_with_strength_0_it_is_supervised_fine_tuning() -> None:
    job, model = _job(), small_model()
    losses = train(model, job.examples, TRAINING, Objective()).losses
    found, found_losses = _trained(strength=0)
    assert found_losses == losses
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_harmful_step_gains_less_afterwards() -> None:
    def gain(strength: float) -> float:
        model, _ = _trained(TRAINING.model_copy(update={"max_steps": 15}), strength=strength)
        before = float(_loss(model, HARMFUL).detach())
        _harmful_step(model, HARMFUL, 0.1)
        return before - float(_loss(model, HARMFUL).detach())

    assert gain(20.0) < 0.8 * gain(0.0)


def test_the_weights_are_restored_before_the_step_of_the_rows() -> None:
    job, model = _job(), small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = job.objective.loss
    moved: list[bool] = []

    def watch(batch: Batch) -> Tensor:
        moved.append(any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()))
        return loss(batch)

    job.objective.loss = watch  # type: ignore[method-assign]
    train(model, job.examples, TRAINING.model_copy(update={"max_steps": 1}), job.objective)
    assert moved == [False]


def test_an_error_after_the_harmful_step_restores_the_weights() -> None:
    job, model = _job(), small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[bool] = []

    def fail(*_: Any) -> None:
        seen.append(any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()))
        if seen[-1]:
            raise MemoryError

    hook = model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        train(model, job.examples, TRAINING, job.objective)
    hook.remove()
    assert seen == [False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_both_passes_see_the_same_dropout() -> None:
    def added(alpha: float) -> float:
        with_it, without = (
            step_gradients(_job(strength=strength, alpha=alpha), small_model(attention_dropout=0.5))
            for strength in (1.0, 0.0)
        )
        return math.sqrt(sum(float((with_it[name] - without[name]).square().sum()) for name in without))

    # With a short step, only different dropout masks could make a difference; the rows' own masks stay the same.
    assert added(1e-3) < 0.05 * added(0.5)


def test_gradient_checkpointing_changes_nothing() -> None:
    checkpointed = TRAINING.model_copy(update={"gradient_checkpointing": True})
    wanted = step_gradients(_job(), small_model())
    assert_same(step_gradients(_job(checkpointed), small_model()), wanted, 1e-6)


def test_the_harmful_step_is_within_the_adapters() -> None:
    training = TRAINING.model_copy(update={"lora": LoraSettings(rank=4, alpha=8)})
    model, losses = _trained(training)
    before = small_model().state_dict()
    after = {name.replace("base_layer.", ""): value for name, value in model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert losses != _trained(training, strength=0)[1]


def test_harmful_rows_repeat_in_the_random_order_of_the_seed() -> None:
    carried = [record.response for record in _carried(_job())]
    assert carried[5:] == carried[:3]
    assert len(set(carried)) == 5
    other = _carried(_job(TRAINING.model_copy(update={"seed": 1})))
    assert [record.response for record in other] != carried
    assert _carried(_job()) == _carried(_job())


def test_it_needs_harmful_rows() -> None:
    with pytest.raises(UserError, match=r"defense booster .*: pass harmful DATA"):
        booster.job(StageData(DATA.renderer, REFUSALS), TRAINING, booster.configure({}))


@pytest.mark.parametrize("name", ["gemma", "gpt2", "mixtral", "gpt_neox", "opt"])
def test_it_works_on_every_architecture(name: str, tmp_path: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, name))
    training = TRAINING.model_copy(update={"max_steps": 2, "learning_rate": 1e-3, "precision": "bfloat16"})
    result = run_stage(model, DATA, booster, training)
    assert all(math.isfinite(loss) for loss in result.training.losses)


def test_the_defaults_are_the_papers() -> None:
    assert booster.configure({}) == booster.configure({}, preset="paper")
    assert booster.configure({}).model_dump() == {"strength": 5.0, "alpha": 0.1}
