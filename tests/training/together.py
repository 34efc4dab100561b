"""Trains a tiny model with several defenses in turn, alone or as one of several processes.

    torchrun --nproc-per-node 2 -m tests.training.together OUT CASE...

Writes OUT/CASE.safetensors (the weights) and OUT/CASE.json (the losses) from the first process.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.choices import TrainingStage as Stage
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.io.processes import is_first_process
from antidote_llm.training.defense import StageData, defense_named, run_stage
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import RunOptions
from tests import tiny

# Ten rows in batches of four, two per step: an epoch's second step has one batch, half of it blank rows.
ROWS = [Record(prompt=tiny.words(2 + i % 4, i), response=tiny.words(1 + i % 5, 50 + i)) for i in range(10)]
HARMFUL = [Record(prompt=row.prompt, response=tiny.words(2 + i % 4, 90 + i)) for i, row in enumerate(ROWS)]
SAFE = [Record(prompt=tiny.words(3, 200 + i), response=tiny.words(1 + i % 3, 250 + i)) for i in range(7)]
TRAINING = TrainingSettings(learning_rate=3e-3, epochs=2, batch_size=4, accumulation=2, warmup=0.3, schedule="cosine")
LORA = LoraSettings(rank=4, alpha=8, dropout=0)


class Case(NamedTuple):
    """A training that must give the same on one process and on two; the run on two may be interrupted."""

    stage: Stage
    defense: str
    settings: Mapping[str, Any] = {}
    training: Mapping[str, Any] = {}
    resumed_from: int = 0


CASES: Mapping[str, Case] = {
    "sft": Case("alignment", "sft"),
    "sft-lora": Case("finetuning", "sft", training={"lora": LORA, "batching": "grouped"}),
    "sft-checkpointed": Case("finetuning", "sft", training={"gradient_checkpointing": True}),
    "lisa": Case("finetuning", "lisa", {"rho": 2.0, "alignment_steps": 1, "user_steps": 2}),
    "lisa-lora": Case("finetuning", "lisa", {"rho": 2.0, "alignment_steps": 1, "user_steps": 2}, {"lora": LORA}),
    "lisa-resumed": Case("finetuning", "lisa", {"rho": 2.0, "alignment_steps": 1, "user_steps": 2}, resumed_from=5),
    "mixin": Case("finetuning", "mixin", {"safe_count": 3}),
    "vaccine": Case("alignment", "vaccine", {"rho": 2.0}),
    "booster": Case("alignment", "booster"),
    "booster-lora": Case("alignment", "booster", training={"lora": LORA}),
    "repnoise": Case("alignment", "repnoise"),
    "ldifs": Case("finetuning", "ldifs", {"strength": 1.0}),
    "ldifs-lora": Case("finetuning", "ldifs", {"strength": 1.0}, {"lora": LORA}),
}


def model() -> Any:
    """Return the model that every training starts from."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **special, initializer_range=0.1))


def trainable(case: Case) -> dict[str, Tensor]:
    """Return the trainable weights that a case starts from."""
    lora = TRAINING.model_copy(update=case.training).lora
    started = model() if lora is None else attach_lora(model(), lora, TRAINING.seed)
    return _learned(started)


def trained(case: Case, running: RunOptions | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Return the trained weights of a case, and its losses."""
    auxiliary = {"alignment": HARMFUL, "finetuning": SAFE}[case.stage]
    defense = defense_named(case.stage, case.defense)
    data = StageData(Renderer(tiny.tokenizer()), ROWS, auxiliary if defense.needs_auxiliary else ())
    training = TRAINING.model_copy(update=case.training)
    result = run_stage(model(), data, defense, training, defense.configure(case.settings), running)
    return _learned(result.model), list(result.training.losses)


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], list[float]]:
    """Read the weights and losses that the processes wrote."""
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


def cut_off_and_resumed(case: Case, folder: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Return the trained weights of a case that resumes from a checkpoint, as if it had been killed after it."""
    steps: list[int] = []
    running = RunOptions(lambda step, _steps: steps.append(step), checkpoints=folder, save_every=case.resumed_from)
    trained(case, running)
    if is_first_process():
        for later in folder.glob("checkpoint-*"):
            if later.name != f"checkpoint-{case.resumed_from}":
                shutil.rmtree(later)
    torch.distributed.barrier()
    steps.clear()
    result = trained(case, running)
    assert not is_first_process() or steps[0] == case.resumed_from + 1
    return result


def _learned(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def main() -> None:
    """Train the cases named on the command line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        case = CASES[name]
        weights, losses = cut_off_and_resumed(case, folder / name) if case.resumed_from else trained(case)
        if is_first_process():
            save_file(weights, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
