"""The one trainer: a thin layer over transformers.Trainer that stages 1 and 2 share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from antidote_llm.data import TokenizedRow
from antidote_llm.training.collator import Collator
from antidote_llm.training.examples import examples_of
from antidote_llm.training.progress import ProgressCallback, StepReport
from antidote_llm.training.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingResult:
    """What a run reports.

    Attributes:
        steps: Optimiser steps taken.
        mean_loss: Mean training loss per step.
    """

    steps: int
    mean_loss: float


# A defense is a subclass of transformers' trainer with one of its own methods changed: ``compute_loss`` (another
# objective), ``training_step`` (a perturbation around the backward pass) or ``create_optimizer`` (another update).
TrainerFactory = Callable[..., Trainer]


def train(
    model: PreTrainedModel,
    rows: Sequence[TokenizedRow],
    settings: TrainingSettings,
    *,
    make_trainer: TrainerFactory = Trainer,
    callbacks: Sequence[TrainerCallback] = (),
    on_step: StepReport | None = None,
) -> TrainingResult:
    """Train a model (or its adapters) in place.

    Args:
        model: What is trained: every parameter that requires a gradient.
        rows: Rendered rows; only their response tokens count in the loss, unless the settings say otherwise.
        settings: How it is trained.
        make_trainer: The trainer or a defense's subclass of it, called with transformers.Trainer's keywords.
        callbacks: Further callbacks.
        on_step: Called after each optimiser step with the step and the number of steps.

    Raises:
        UserError: There is nothing to learn from.
    """
    examples, use_cache = examples_of(rows, settings), model.config.use_cache
    set_seed(settings.seed)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    all_callbacks = [*callbacks, *([ProgressCallback(on_step)] if on_step is not None else [])]
    with tempfile.TemporaryDirectory(prefix="antidote-train-") as folder:
        trainer = make_trainer(
            model=model,
            args=_arguments(settings, folder, len(examples)),
            train_dataset=examples,
            data_collator=Collator(pad_token_id=_pad_token_id(model)),
            callbacks=all_callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        outcome = trainer.train()
        # The trainer leaves these as training wants them, and they would be saved with the model.
        model.config.use_cache = use_cache
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_disable()
    model.eval()
    return TrainingResult(steps=outcome.global_step, mean_loss=outcome.training_loss)


def _arguments(settings: TrainingSettings, folder: str, row_count: int) -> TrainingArguments:
    steps_an_epoch = -(-row_count // (settings.batch_size * settings.accumulation))
    steps = settings.max_steps or max(1, round(settings.epochs * steps_an_epoch))
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(settings.warmup * steps),
        train_sampling_strategy="group_by_length" if settings.batching == "grouped" else "random",
        bf16=settings.dtype == "bfloat16",
        seed=settings.seed,
        data_seed=settings.seed,
        optim="adamw_torch_fused",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def _pad_token_id(model: Any) -> int:
    pad = model.config.get_text_config().pad_token_id
    return int(pad) if pad is not None else 0
