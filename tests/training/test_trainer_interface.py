"""What training/trainer.py assumes of private interfaces of transformers' Trainer: each is one test, named after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from antidote_llm.training.batches import Collator
from tests.training.steps import DATA, TRAINING, llama


class Watched(Trainer):
    """Notes the calls of private methods, and how things are when they return."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        settings: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True}
        settings |= {"disable_tqdm": True, "report_to": "none"}
        super().__init__(
            model=llama(),
            args=TrainingArguments(output_dir=str(folder), **{**settings, **arguments}),
            train_dataset=DATA.examples(TRAINING),
            data_collator=Collator(0),
        )
        self.calls: list[str] = []
        self.prepared: dict[str, torch.Tensor] = {}
        self.windows: list[list[Any]] = []

    def _prepare_for_training(self, *arguments: Any, **keywords: Any) -> Any:
        found = super()._prepare_for_training(*arguments, **keywords)
        self.calls.append("prepare")
        self.prepared = {name: value.clone() for name, value in self.model.state_dict().items()}
        assert self.model_wrapped is not None and self.optimizer is not None
        return found

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        self.calls.append(f"epoch from step {self.state.global_step}")
        super()._run_epoch(*arguments, **keywords)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[Any, Any]:
        window, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.windows.append(list(window))
        return window, tokens

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.calls.append(f"save at step {self.state.global_step}")
        super()._save_checkpoint(model, trial)
        assert (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / "trainer_state.json").is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Watched:
    trainer = Watched(folder)
    trainer.train()
    return trainer


def test_the_overridden_methods_have_these_parameters() -> None:
    def names(method: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(method).parameters)[1:]

    assert names(Trainer._prepare_for_training) == ["max_steps", "train_dataloader", "resume_from_checkpoint"]
    assert names(Trainer._save_checkpoint) == ["model", "trial"]
    assert names(Trainer._prepare_inputs) == ["inputs"]
    assert names(Trainer.get_batch_samples)[:3] == ["epoch_iterator", "num_batches", "device"]


def test_prepare_for_training_is_called_once_before_any_step(trained: Watched) -> None:
    assert trained.calls.count("prepare") == 1 and trained.calls[0] == "prepare"


def test_run_epoch_is_called_for_each_epoch(trained: Watched) -> None:
    assert [call for call in trained.calls if "epoch" in call] == ["epoch from step 0", "epoch from step 2"]


def test_get_batch_samples_returns_the_micro_batches_of_each_step(trained: Watched) -> None:
    assert [[len(batch["labels"]) for batch in window] for window in trained.windows] == [[4]] * 4


def test_save_checkpoint_writes_to_the_folder_of_its_step(trained: Watched) -> None:
    assert [call for call in trained.calls if "save" in call] == ["save at step 2", "save at step 4"]


def test_a_run_that_resumes_has_the_weights_of_its_checkpoint_when_prepare_for_training_returns(
    trained: Watched, folder: Path
) -> None:
    again = Watched(folder)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    final = trained.model.state_dict()
    assert all(torch.equal(value, final[name]) for name, value in again.prepared.items())


def test_run_epoch_is_called_after_the_last_step_too(tmp_path: Path) -> None:
    # Checkpoint 3 is within the second epoch: a run that resumes from it has no step left, and would take one more.
    halfway = {"max_steps": 3, "save_steps": 3}
    Watched(tmp_path, **halfway).train()
    again = Watched(tmp_path, **halfway)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [call for call in again.calls if "epoch" in call] == ["epoch from step 3"]
    assert again.state.global_step == 4


def test_prepare_inputs_moves_a_batch_to_the_device(trained: Watched) -> None:
    (batch,) = trained.windows[0]
    assert trained._prepare_inputs(batch)["labels"].device == trained.args.device


def test_n_gpu_is_how_many_devices_one_process_trains_on(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 7
    assert arguments.n_gpu == 7
