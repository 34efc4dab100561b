from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from antidote_llm.errors import UserError
from antidote_llm.finetuning.ldifs import ldifs
from antidote_llm.finetuning.sft import sft
from antidote_llm.training.defense import TrainingJob, defense_named
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.objective import Session
from antidote_llm.training.settings import LoraSettings
from antidote_llm.training.trainer import RunOptions, train
from tests.architectures import ARCHITECTURES, write_checkpoint
from tests.training.steps import (
    TRAINING,
    Step,
    distance,
    hooks,
    job_of,
    llama,
    watch,
    whole,
    with_and_without_checkpointing,
    without_dropout,
)

ONCE = TRAINING.model_copy(update={"max_steps": 1})
ONE_BY_ONE = TRAINING.model_copy(update={"batch_size": 1, "accumulation": 4})
LORA = LoraSettings(rank=2, alpha=4, targets=("q_proj", "down_proj"))
KINDS = ("all weights", "fresh adapters", "fresh adapters with dropout", "adapters that go on", "adapters on adapters")
RAW = {"normalise": False, "reduction": "sum"}


def _model(kind: str) -> Any:
    """Return a model of one of the kinds that fine-tuning starts from."""
    if kind == "all weights":
        return llama().double()
    dropout = 0.2 if "dropout" in kind else 0.0
    model: Any = attach_lora(llama(attention_dropout=dropout), LORA.model_copy(update={"dropout": dropout}), 0)
    if "fresh" not in kind:
        _move(model, 0.3, ".lora_B.default.")
    if kind == "adapters on adapters":
        model.add_adapter("second", copy.copy(model.peft_config["default"]))
        model.base_model.set_adapter(["default", "second"])
        for name, value in model.named_parameters():
            value.requires_grad_(".second." in name)
    return model.double()


def _move(model: Any, by: float, part: str = "") -> None:
    """Move a model's parameters, always in the same direction."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if part in name:
                value.add_(by * torch.randn(value.shape, generator=generator))


def _said(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a llama's logits and the outputs of its feed-forward layers, [layers, B, T, D]."""
    found: list[Tensor] = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    caught = [
        layer.mlp.register_forward_hook(lambda _, __, output: found.append(output)) for layer in base.model.layers
    ]
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for hook in caught:
        hook.remove()
    return logits, torch.stack(found)


def _by_formula(model: Any, start: Any, batch: dict[str, Tensor], strength: float, normalise: bool = True) -> Tensor:
    logits, found = _said(model, batch)
    with torch.no_grad():
        _, wanted = _said(start, batch)
    if normalise:
        found, wanted = (said / said.square().sum(-1, keepdim=True).sqrt() for said in (found, wanted))
    drift = (found - wanted).square().sum(-1)[:, batch["attention_mask"] == 1]
    labels = batch["labels"][:, 1:]
    words = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -words[labels != -100].mean() + strength * (drift.mean() if normalise else drift.sum())


def _moved(job: TrainingJob, by: float) -> TrainingJob:
    """Move the model after the objective has recorded its initial weights."""
    attach: Any = job.objective.attach

    def moved(session: Session) -> None:
        _move(session.inner, by)
        attach(session)

    job.objective.attach = moved  # type: ignore[method-assign]
    return job


def _penalty(by: float, **settings: Any) -> float:
    """Return the drift's part of the loss of the first step."""
    job = _moved(job_of(ldifs, ONCE, **settings), by)
    model = llama().double()
    _move(model, by)
    with torch.no_grad():
        plain = float(_by_formula(model, model, whole(job, 0), 0))
    return watch(llama().double(), job)[0].loss - plain


@pytest.mark.parametrize("training", [TRAINING, ONE_BY_ONE], ids=["4x1", "1x4"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "dropout" not in kind])
def test_the_gradient_is_that_of_the_formula(kind: str, training: Any) -> None:
    job = job_of(ldifs, training, strength=3)
    steps = watch(_model(kind), job)
    for index, step in enumerate(steps):
        model, start = _model(kind), _model(kind)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(step.weights[name])
        loss = _by_formula(model, start, whole(job, index), 3)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        assert step.loss == pytest.approx(loss.item(), rel=1e-6)
        assert distance(step.gradients, gradients) < 1e-6


def test_the_sum_over_raw_features_is_that_of_the_formula() -> None:
    job = job_of(ldifs, ONE_BY_ONE, strength=0.01, **RAW)
    step = watch(llama().double(), job)[1]
    model = llama().double()
    model.load_state_dict(step.weights)
    loss = _by_formula(model, llama().double(), whole(job, 1), 0.01, normalise=False)
    loss.backward()  # type: ignore[no-untyped-call]
    assert step.loss == pytest.approx(loss.item(), rel=1e-6)
    assert distance(step.gradients, {name: value.grad for name, value in model.named_parameters()}) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_strength_it_is_plain_fine_tuning_bit_for_bit(dropout: float) -> None:
    plain, free = llama(attention_dropout=dropout), llama(attention_dropout=dropout)
    watch(plain, job_of(sft))
    watch(free, job_of(ldifs, strength=0))
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in free.state_dict().items())


def test_a_stronger_penalty_keeps_the_features_nearer() -> None:
    training, drifts = TRAINING.model_copy(update={"max_steps": 12}), []
    for strength in (0.0, 1.0, 100.0):
        model, job = llama(), job_of(ldifs, training, strength=strength)
        watch(model, job)
        with torch.no_grad():
            with_drift, without = (_by_formula(model, llama(), whole(job, 0), weight) for weight in (1, 0))
        drifts.append(float(with_drift - without))
    assert drifts[0] > 1.2 * drifts[1] > 3 * drifts[2]


@pytest.mark.parametrize("settings", [{"strength": 1}, {"strength": 1, **RAW}], ids=["unit", "raw"])
def test_the_penalty_grows_with_the_drift_without_a_limit(settings: dict[str, Any]) -> None:
    penalties = [_penalty(by, **settings) for by in (0, 0.01, 0.1)]
    assert penalties[0] == pytest.approx(0, abs=1e-6)
    assert penalties[2] > 10 * penalties[1] > 1e-3


def test_with_the_published_code_a_layer_beyond_the_threshold_is_left_out_and_counted() -> None:
    settings = ldifs.configure({}, "official-code").model_dump()
    for by, dropped in ((0.01, 0), (1.0, 2)):
        job = _moved(job_of(ldifs, ONE_BY_ONE.model_copy(update={"max_steps": 1}), **settings), by)
        watch(llama(), job)
        assert job.objective.state() == {"dropped": torch.tensor(4 * dropped)}
    assert _penalty(0.01, **settings) > 1e-5
    assert _penalty(1.0, **settings) == pytest.approx(0, abs=1e-6)


def test_with_the_published_code_pads_count() -> None:
    assert _penalty(0.01, strength=1, **RAW, include_pads=True) > 1.1 * _penalty(0.01, strength=1, **RAW)


@pytest.mark.parametrize("kind", KINDS)
def test_the_initial_drift_is_zero_with_dropout_too(kind: str) -> None:
    losses = [watch(_model(kind), job_of(defense, ONCE))[0].loss for defense in (sft, ldifs)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("lora", [None, LORA])
def test_gradient_checkpointing_changes_nothing(lora: LoraSettings | None) -> None:
    plain, checkpointed = with_and_without_checkpointing(ldifs, ONE_BY_ONE, lora)
    assert plain.loss == checkpointed.loss
    assert distance(checkpointed.gradients, plain.gradients) < 1e-6


@pytest.mark.parametrize("name", ["gemma", "qwen2", "gpt2", "mixtral", "gpt_neox", "opt"])
def test_every_architecture_gets_the_penalty(name: str, tmp_path: Path) -> None:
    lora = LoraSettings(rank=2, alpha=4, targets=(ARCHITECTURES[name].linears[-1],))
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path / "model", name))
    model, job = attach_lora(without_dropout(model), lora, 0), _moved(job_of(ldifs, ONCE), 0.1)
    start = copy.deepcopy(model)
    _move(start, 0.1)
    with torch.no_grad():
        plain = float(start(**whole(job, 0)).loss)
    assert watch(model, job)[0].loss > plain + 0.05
    assert hooks(model) == 0


@pytest.mark.parametrize("kind", ["all weights", "fresh adapters", "adapters that go on"])
def test_a_resumed_run_measures_drift_from_the_initial_model(kind: str, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"max_steps": 4})
    straight = watch(_model(kind), job_of(ldifs, training))
    running = RunOptions(checkpoints=tmp_path, save_every=2, on_step=_stop_after(3))
    job = job_of(ldifs, training)
    with pytest.raises(KeyboardInterrupt):
        train(_model(kind), job.examples, training, job.objective, running)
    job = job_of(ldifs, training)
    result = train(_model(kind), job.examples, training, job.objective, RunOptions(checkpoints=tmp_path))
    assert result.resumed_from == 2
    assert list(result.losses) == pytest.approx([step.loss for step in straight], rel=1e-12)


def test_hooks_are_removed_on_an_error() -> None:
    model, job = llama(), job_of(ldifs)

    def fail(*_: Any) -> None:
        assert hooks(model) == 2
        raise KeyboardInterrupt

    model.lm_head.forward = fail
    with pytest.raises(KeyboardInterrupt):
        train(model, job.examples, job.training, job.objective)
    assert hooks(model) == 0


def test_bfloat16_computes_about_the_same() -> None:
    steps: Sequence[Sequence[Step]] = [
        watch(llama(), job_of(ldifs, TRAINING.model_copy(update={"precision": precision})))
        for precision in ("float32", "bfloat16")
    ]
    assert steps[1][1].loss == pytest.approx(steps[0][1].loss, rel=0.02)
    assert distance(steps[1][1].gradients, steps[0][1].gradients) < 0.1


def test_the_defaults_are_the_papers() -> None:
    assert defense_named("finetuning", "ldifs") == ldifs
    assert ldifs.configure({}) == ldifs.configure({}, "paper")


def test_a_threshold_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="drop_threshold 0"):
        ldifs.configure({"drop_threshold": 0})


def _stop_after(last: int) -> Any:
    def on_step(step: int, steps: int) -> None:
        del steps
        if step == last:
            raise KeyboardInterrupt

    return on_step
