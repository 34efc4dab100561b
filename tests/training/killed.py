"""Kills trainings and lets them go on; a process of its own, because it forks.

    python -m tests.training.killed FOLDER

Prints one JSON object: for every case how its first run ended, from where those after it went on, and whether they made
the same losses and the same weights as a run that was left alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.training import checkpoints
from antidote_llm.training.defense import StageData, StageResult, defense_named, run_stage
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import RunOptions
from tests import tiny

SAVE_EVERY = 3
LISA: Mapping[str, Any] = {"rho": 2.0, "alignment_steps": 2, "user_steps": 3}
USER = [Record(prompt=tiny.words(2 + i % 4, i), response=tiny.words(1 + i % 5, 50 + i)) for i in range(10)]
SAFE = [Record(prompt=tiny.words(3, 200 + i), response=tiny.words(1 + i % 3, 250 + i)) for i in range(7)]
FULL = TrainingSettings(
    learning_rate=3e-3, max_steps=7, batch_size=2, accumulation=2, warmup=0.3, schedule="constant", seed=5
)
ADAPTED = FULL.model_copy(update={"lora": LoraSettings(rank=4, alpha=8, dropout=0.2)})


def at_step(step: int) -> Callable[[], RunOptions]:
    """Return a callback that ends a run with SIGKILL after a step, before the checkpoint of that step."""
    return lambda: RunOptions(on_step=lambda now, _steps: _die() if now == step else None)


def writing_the_second_checkpoint() -> RunOptions:
    """End a run with SIGKILL when its second checkpoint lacks only the manifest."""
    written: list[Path] = []

    def write(path: Path, value: Any) -> None:
        if written:
            _die()
        written.append(path)
        path.write_text(json.dumps(value))

    checkpoints.write_json = write  # type: ignore[attr-defined]
    return RunOptions()


class Case(NamedTuple):
    """A training, when it is killed, and the checkpoint from which it resumes."""

    defense: str
    settings: Mapping[str, Any]
    training: TrainingSettings
    ending: Callable[[], RunOptions]
    resumes_from: int
    ends_again: bool = False


CASES: Mapping[str, Case] = {
    "sft": Case("sft", {}, FULL, at_step(5), 3, ends_again=True),
    "sft-lora": Case("sft", {}, ADAPTED, at_step(7), 6),
    "sft-grouped": Case("sft", {}, FULL.model_copy(update={"batching": "grouped"}), at_step(4), 3),
    # Turns begin after steps 2, 5, 7 and 10: there is a checkpoint within a turn of each kind.
    "lisa": Case("lisa", LISA, FULL, at_step(4), 3),
    "lisa-lora": Case("lisa", LISA, ADAPTED, at_step(7), 6),
    "cut-checkpoint": Case("lisa", LISA, ADAPTED, writing_the_second_checkpoint, 3),
}


def run(case: Case, running: RunOptions | None = None) -> StageResult:
    """Train a tiny model with dropout."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **special, attention_dropout=0.2))
    defense = defense_named("finetuning", case.defense)
    data = StageData(Renderer(tiny.tokenizer()), USER, SAFE if defense.needs_auxiliary else ())
    return run_stage(model, data, defense, case.training, defense.configure(case.settings), running)


def kept_in(folder: Path, running: RunOptions | None = None) -> RunOptions:
    """Return the options of a run that saves checkpoints in a folder."""
    return RunOptions((running or RunOptions()).on_step, checkpoints=folder, save_every=SAVE_EVERY)


def main() -> None:
    """Kill every case first, while this process has not trained yet; then resume them."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    endings = {name: _ended(case, folder / name) for name, case in CASES.items()}
    report = {}
    for name, case in CASES.items():
        # A finished run is started once more: it has no step left.
        resumed = [run(case, kept_in(folder / name)) for _ in range(1 + case.ends_again)]
        alone = run(case)
        report[name] = {
            "ending": endings[name],
            "resumed_from": [result.training.resumed_from for result in resumed],
            "same_losses": [result.training.losses == alone.training.losses for result in resumed],
            "same_weights": [_equal(result.model.state_dict(), alone.model.state_dict()) for result in resumed],
        }
    print(json.dumps(report))  # noqa: T201


def _equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())


def _ended(case: Case, folder: Path) -> int:
    """Train in a fork that kills itself, and return the signal that ended it."""
    process = os.fork()
    if process == 0:
        run(case, kept_in(folder, case.ending()))
        os._exit(1)
    return os.WTERMSIG(os.waitpid(process, 0)[1])


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    main()
