"""The one trainer of stages 1 and 2: transformers' trainer with an objective of ours, on one or several processes.

Several processes train as one: each gets an equal share of every batch, in the order of a run on one process. All
private interfaces of transformers' trainer that this program uses are in this file, each with a comment that names it.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import get_reporting_integration_callbacks

from antidote_llm.errors import UserError, first_line, setting
from antidote_llm.io.files import remove
from antidote_llm.io.processes import is_first_process, process_count, require_launched
from antidote_llm.models.config import quiet_transformers
from antidote_llm.training.batches import BLANK, Batch, Collator, Example, Examples
from antidote_llm.training.checkpoints import load_objective, newest, removed_on_failure, require_sound, save_objective
from antidote_llm.training.objective import Objective, Session, Trained
from antidote_llm.training.settings import TrainingSettings, step_count


class WholeBatches:
    """A batch sampler that pads an epoch's last batch with blank rows, so that it can be shared like the others."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield batch + [BLANK] * (self._batches.batch_size - len(batch))


def require_shareable(batch_size: int) -> None:
    """Refuse a batch that cannot be shared equally, and processes that cannot connect to each other.

    Raises:
        UserError: Names a possible size, or what is missing.
    """
    require_launched()
    processes = process_count()
    if batch_size % processes:
        raise UserError(
            f"{setting('batch_size')} {batch_size} is not shared evenly by {processes} processes: "
            f"pass {setting('batch_size')} {processes * -(-batch_size // processes)}"
        )


def with_whole_batches(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader that shares its batches between processes, with the last batch padded."""
    shares: Any = loader.batch_sampler
    shares.batch_sampler = WholeBatches(shares.batch_sampler)
    return loader


_TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"


def require_integrations(names: Sequence[str]) -> None:
    """Refuse a logging integration that transformers does not know, or whose library is missing.

    Raises:
        UserError: Names those that are known, or what to install.
    """
    try:
        for integration in get_reporting_integration_callbacks(names[0] if len(names) == 1 else list(names)):
            integration()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{setting('report_to')} {','.join(names)}: {first_line(error).rstrip('. ')}: install it, or leave "
            f"{setting('report_to')} out"
        ) from error


@contextmanager
def tensorboard_in(folder: Path) -> Iterator[None]:
    """Set the folder that TensorBoard's integration writes to, unless the user has set one."""
    if _TENSORBOARD_FOLDER in os.environ:
        yield
        return
    os.environ[_TENSORBOARD_FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[_TENSORBOARD_FOLDER]


StepReport: TypeAlias = Callable[[int, int], None]
_SAMPLING = {"shuffled": "random", "grouped": "group_by_length", "ordered": "sequential"}
_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrainingResult:
    """What a run reports.

    Attributes:
        steps: Optimiser steps taken.
        losses: The objective's value at every step.
        resumed_from: The step of the checkpoint that the run resumed from; 0 where there was none.
    """

    steps: int
    losses: tuple[float, ...]
    resumed_from: int = 0

    @property
    def mean_loss(self) -> float:
        """Mean training loss per step."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class RunOptions:
    """How a run is reported and saved; nothing here changes its result.

    Attributes:
        on_step: Called after each optimiser step with the step and the number of steps.
        checkpoints: The folder of checkpoints; a run resumes from the newest there. None saves none.
        save_every: Optimiser steps between two checkpoints.
        report_to: Names of logging integrations of transformers, such as ``tensorboard`` or ``wandb``.
        logs: The folder of TensorBoard's files.
        key: What the run depends on, in any form: a checkpoint with another key is refused.
    """

    on_step: StepReport | None = None
    checkpoints: Path | None = None
    save_every: int = 500
    report_to: tuple[str, ...] = ()
    logs: Path | None = None
    key: str = ""


def train(
    model: Trained,
    examples: Sequence[Example],
    settings: TrainingSettings,
    objective: Objective | None = None,
    running: RunOptions | None = None,
) -> TrainingResult:
    """Train a model (or its adapters) in place.

    Args:
        model: What is trained: every parameter that requires a gradient.
        examples: What is learned.
        settings: How it is trained. ``batch_size`` is that of all processes together.
        objective: What is minimised; the cross-entropy of the labels where not given.
        running: How the run is reported and saved.

    Raises:
        UserError: The loss or a weight is not finite, a logging integration is missing, or the newest checkpoint is
            damaged.
    """
    running, objective = running or RunOptions(), objective or Objective()
    require_shareable(settings.batch_size)
    require_integrations(running.report_to)
    # Configurations of multimodal models have no such field.
    use_cache = getattr(model.config, "use_cache", None)
    set_seed(settings.seed)
    if settings.gradient_checkpointing:
        # Re-entrant checkpointing hides what is inside a layer from torch.autograd.grad.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with ExitStack() as stack:
        stack.enter_context(quiet_transformers())
        folder = running.checkpoints or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="antidote-train-")))
        resume = newest(folder)
        if resume is not None:
            require_sound(resume, running.key)
        if running.logs is not None:
            stack.enter_context(tensorboard_in(running.logs))
        trainer = _StageTrainer(
            objective,
            running.key,
            model=model,
            args=_arguments(settings, folder, len(examples), running),
            train_dataset=Examples(examples),
            data_collator=Collator(pad_token_id=_pad_token_id(model)),
            callbacks=[_Watch(running.on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        stack.callback(objective.detach)
        objective.prepare(model)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        # The trainer changes these for training, and they would be saved with the model.
        if use_cache is None:
            del model.config.use_cache
        else:
            model.config.use_cache = use_cache
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_disable()
    _require_finite(model, trainer.state.global_step)
    model.eval()
    history = trainer.state.log_history
    return TrainingResult(
        steps=trainer.state.global_step,
        losses=tuple(float(entry["loss"]) for entry in history if "loss" in entry),
        resumed_from=0 if resume is None else int(resume.name.rpartition("-")[2]),
    )


class _StageTrainer(Trainer):
    """transformers' trainer with an objective of ours."""

    def __init__(self, objective: Objective, key: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._objective, self._key, self._session = objective, key, Session(self)
        self._window: Sequence[Batch] | None = None
        # The objective's losses are already shares of the whole step's.
        self.loss_is_scaled_for_ga = True
        self.add_callback(_AfterStep(objective))

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = super().get_train_dataloader()
        return with_whole_batches(loader) if process_count() > 1 else loader

    # Private: called once a run. Afterwards the model is wrapped, on its device, and holds a checkpoint's weights.
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._objective.attach(self._session)
        if resume_from_checkpoint is not None:
            self._objective.restore(load_objective(Path(resume_from_checkpoint)))
        return prepared

    # Private: called once an epoch, and takes at least one step, even where a run resumes after its last one.
    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **keywords)

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any) -> tuple[Any, Any]:
        self._window, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._window, tokens

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        del model, return_outputs, num_items_in_batch
        # Not in get_batch_samples: when a run resumes, the random state is loaded after that.
        if self._window is not None:
            # Private: _prepare_inputs moves a batch to the device.
            window, self._window = [self._prepare_inputs(batch) for batch in self._window], None
            self._session.label_tokens = self._session.tokens_of(window)
            self._objective.before_step(window)
        return self._objective.loss(inputs)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._objective.adjust_gradients()
        return loss

    # Private: called for each checkpoint; writes all of it to checkpoint-STEP in the output folder.
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if is_first_process():
            # Files of an interrupted run must not mix with those that are written now.
            remove(folder)
        self.accelerator.wait_for_everyone()
        with removed_on_failure(folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if is_first_process():
                save_objective(folder, self._objective.state(), self._key)
        self.accelerator.wait_for_everyone()


class _AfterStep(TrainerCallback):
    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state, control
        self._objective.after_step()


class _Watch(TrainerCallback):
    """Reports steps, and ends a run whose loss is not finite."""

    def __init__(self, on_step: StepReport | None) -> None:
        self._on_step = on_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, control
        if self._on_step is not None and is_first_process():
            self._on_step(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        del args, control
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(f"the loss is not finite at step {state.global_step}: lower {setting('learning_rate')}")


def _require_finite(model: Trained, step: int) -> None:
    """Refuse weights that the last step made infinite or NaN: no later loss shows it."""
    if not all(value.isfinite().all() for value in model.parameters() if value.requires_grad):
        raise UserError(f"a weight is not finite after step {step}, the last: lower {setting('learning_rate')}")


def _arguments(settings: TrainingSettings, folder: Path, rows: int, running: RunOptions) -> TrainingArguments:
    steps, processes, on_cpu = step_count(settings, rows), process_count(), not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(settings.warmup * steps),
        train_sampling_strategy=_SAMPLING[settings.batching],
        bf16=settings.precision == "bfloat16",
        seed=settings.seed,
        data_seed=settings.seed,
        optim="adamw_torch_fused",
        remove_unused_columns=False,
        use_cpu=on_cpu,
        ddp_backend="gloo" if processes > 1 and on_cpu else None,
        # The batch size is that of all processes together; each gets its share.
        accelerator_config={"split_batches": True, "even_batches": False} if processes > 1 else None,
        save_strategy="no" if running.checkpoints is None else "steps",
        save_steps=running.save_every,
        save_total_limit=_KEPT_CHECKPOINTS,
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(running.report_to) or "none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    # Private: _n_gpu, how many devices one process trains on. Here it is one; several need several processes.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _pad_token_id(model: Any) -> int:
    pad = model.config.get_text_config().pad_token_id
    return int(pad) if pad is not None else 0
