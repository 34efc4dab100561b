from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from antidote_llm.alignment.sft import sft
from antidote_llm.alignment.vaccine import vaccine
from antidote_llm.errors import UserError
from antidote_llm.training.batches import Collator, label_tokens
from antidote_llm.training.defense import defense_named
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.settings import LoraSettings
from antidote_llm.training.trainer import train
from tests.architectures import ARCHITECTURES, write_checkpoint
from tests.training.steps import (
    TRAINING,
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


def _loss(model: Any, batch: dict[str, Tensor], shifts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Run a llama with shifted attention outputs; return the mean cross-entropy and those outputs."""
    said = []

    def shifted(attention: Any, shift: Tensor) -> Any:
        own = type(attention).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output, weights = own(attention, *args, **kwargs)
            output = output + shift
            if output.requires_grad:
                output.retain_grad()
            said.append(output)
            return output, weights

        return forward

    for layer, shift in zip(model.model.layers, shifts, strict=True):
        layer.self_attn.forward = shifted(layer.self_attn, shift)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    for layer in model.model.layers:
        del layer.self_attn.forward
    labels = batch["labels"][:, 1:]
    words = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -words[labels != -100].mean(), said


def _by_formula(model: Any, batch: dict[str, Tensor], rho: float) -> tuple[float, dict[str, Tensor]]:
    """Algorithm 1 of arXiv 2402.01109 with one backward pass for the shift and one for the gradient."""
    still = [torch.zeros(()) for _ in model.model.layers]
    loss, said = _loss(model, batch, still)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [output.grad for output in said if output.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    model.zero_grad()
    loss, _ = _loss(model, batch, [rho * gradient / norm for gradient in gradients])
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("training", [TRAINING, ONE_BY_ONE], ids=["4x1", "1x4"])
@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_the_gradient_is_that_of_the_formula(rho: float, training: Any) -> None:
    job = job_of(vaccine, training, rho=rho)
    for index, step in enumerate(watch(llama().double(), job)):
        model = llama().double()
        model.load_state_dict({**step.weights})
        loss, gradients = _by_formula(model, whole(job, index), rho)
        assert step.loss == pytest.approx(loss, rel=1e-6)
        assert distance(step.gradients, gradients) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_a_shift_it_is_plain_fine_tuning_bit_for_bit(dropout: float) -> None:
    plain, still = llama(attention_dropout=dropout), llama(attention_dropout=dropout)
    watch(plain, job_of(sft))
    watch(still, job_of(vaccine, rho=0))
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in still.state_dict().items())


def test_a_longer_shift_makes_a_larger_loss() -> None:
    losses = [watch(llama(), job_of(vaccine, ONCE, rho=rho))[0].loss for rho in (0.0, 0.5, 2.0)]
    assert losses == sorted(set(losses))


def test_one_row_per_pass_gives_the_same_shift_as_one_pass() -> None:
    together, apart = (watch(llama(), job_of(vaccine, training))[0] for training in (ONCE, ONE_BY_ONE))
    assert apart.loss == pytest.approx(together.loss, rel=1e-5)
    assert distance(apart.gradients, together.gradients) < 1e-5


def test_with_the_published_code_each_pass_has_its_own_length() -> None:
    settings = vaccine.configure({}, "official-code").model_dump()
    job = job_of(vaccine, ONE_BY_ONE, **settings)
    batches = [Collator(0)([row]) for row in job.examples[:4]]
    losses = [_by_formula(llama(), batch, 2.0)[0] for batch in batches]
    tokens = [int(label_tokens(batch)) for batch in batches]
    wanted = sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
    assert watch(llama(), job)[0].loss == pytest.approx(wanted, rel=1e-5)


def test_both_passes_draw_the_same_dropout() -> None:
    model = llama(attention_dropout=0.5)
    said: list[Tensor] = []
    caught = model.lm_head.register_forward_hook(lambda module, inputs, output: said.append(output.detach()))
    watch(model, job_of(vaccine, ONE_BY_ONE, rho=0))
    caught.remove()
    assert len(said) == 16
    said = said[8:]
    assert all(torch.equal(first, second) for first, second in zip(said[:4], said[4:], strict=True))


@pytest.mark.parametrize("lora", [None, LORA])
def test_gradient_checkpointing_changes_nothing(lora: LoraSettings | None) -> None:
    plain, checkpointed = with_and_without_checkpointing(vaccine, ONE_BY_ONE, lora)
    assert plain.loss == checkpointed.loss
    assert distance(checkpointed.gradients, plain.gradients) < 1e-6


@pytest.mark.parametrize("name", ["gemma", "qwen2", "gpt2", "mixtral", "gpt_neox", "opt"])
def test_every_architecture_is_shifted_and_has_no_hooks_afterwards(name: str, tmp_path: Path) -> None:
    # Adapters on the last linear layers only: without the shift, no gradient would reach the first attention.
    lora = LoraSettings(rank=2, alpha=4, targets=(ARCHITECTURES[name].linears[-1],))
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path / "model", name))
    model, job = attach_lora(without_dropout(model), lora, 0), job_of(vaccine, ONCE)
    with torch.no_grad():
        unshifted = float(model(**whole(job, 0)).loss)
    assert watch(model, job)[0].loss > unshifted + 0.05
    assert hooks(model) == 0


def test_hooks_are_removed_on_an_error() -> None:
    model, job = llama(), job_of(vaccine)

    def fail() -> None:
        assert hooks(model) == 2
        raise KeyboardInterrupt

    job.objective.adjust_gradients = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(model, job.examples, job.training, job.objective)
    assert hooks(model) == 0


def test_bfloat16_computes_about_the_same() -> None:
    exact = watch(llama(), job_of(vaccine, ONCE))
    rough = watch(llama(), job_of(vaccine, ONCE.model_copy(update={"precision": "bfloat16"})))
    assert rough[0].loss == pytest.approx(exact[0].loss, rel=0.02)
    assert distance(rough[0].gradients, exact[0].gradients) < 0.1


def test_the_defaults_are_the_papers() -> None:
    assert defense_named("alignment", "vaccine") == vaccine
    assert vaccine.configure({}) == vaccine.configure({}, "paper")
    assert vaccine.configure({}).model_dump() == {"rho": 2.0, "norm_over": "step"}


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(UserError, match="rho -1"):
        vaccine.configure({"rho": -1})
