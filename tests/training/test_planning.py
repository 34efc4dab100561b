from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from antidote_llm.cli.main import run
from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.models.skeleton import Skeleton, open_skeleton
from antidote_llm.training.defense import StageData, defense_named
from antidote_llm.training.estimate import (
    CHARACTERS_PER_TOKEN,
    StagePlan,
    given_speed,
    kept_bytes,
    measured_speed,
    plan_stage,
    renderer_for,
)
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from tests import tiny
from tests.architectures import write_checkpoint
from tests.cli.command import Command, tree

LORA = LoraSettings(rank=4, targets=("q_proj", "v_proj"))
SPEED = given_speed(1e9)


@pytest.fixture
def antidote(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model's folder without its weights."""
    folder = tiny.write_model(tmp_path / "bare")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return folder


def planned(folder: Path, rows: Path, defense: str = "sft", **settings: Any) -> StagePlan:
    skeleton = open_skeleton(str(folder))
    training = TrainingSettings(**{"batch_size": 4, "epochs": 3, "lora": LORA, **settings})
    data = StageData(renderer_for(skeleton, "auto", None), read_records(rows))
    chosen = defense_named("alignment" if defense == "vaccine" else "finetuning", defense)
    return plan_stage(skeleton, data, chosen, training, chosen.configure({}), speed=SPEED)


def test_no_weights_are_needed(bare: Path, tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 10)
    plan = planned(bare, rows)
    lengths = [len(row.input_ids) for row in Renderer(tiny.tokenizer()).rows(read_records(rows))]
    assert (plan.rows, plan.steps) == (10, 9)
    assert (plan.tokens_per_epoch, plan.tokens, plan.longest_row) == (sum(lengths), 3 * sum(lengths), max(lengths))
    assert plan.tokens < plan.padded_tokens <= 30 * max(lengths)
    assert plan.tokens_from == "tokenizer"


def test_parameters_and_operations_are_counted(bare: Path, tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 8)
    attention, feed_forward, vocabulary = 2 * 32 * 32 + 2 * 16 * 32, 3 * 32 * 48, tiny.VOCABULARY_SIZE * 32
    computing = 2 * (attention + feed_forward) + vocabulary
    whole = computing + vocabulary + 5 * 32
    adapters = 2 * 4 * (2 * 32 + 32 + 16)
    lora, full = planned(bare, rows), planned(bare, rows, lora=None)
    assert (lora.parameters, lora.trainable_parameters) == (whole + adapters, adapters)
    assert (full.parameters, full.trainable_parameters) == (whole, whole)
    assert lora.flops == lora.padded_tokens * (4 * computing + 6 * adapters)
    assert full.flops == full.padded_tokens * 6 * computing
    assert full.seconds == full.flops / 1e9
    assert planned(bare, rows, "vaccine").flops == 2 * lora.flops


def test_memory_grows_with_what_is_trained_and_with_the_batch(bare: Path, tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 8)
    lora, full = planned(bare, rows), planned(bare, rows, lora=None)
    assert (full.memory.gradients, full.memory.optimizer) == (4 * full.parameters, 8 * full.parameters)
    assert lora.memory.optimizer == 8 * lora.trainable_parameters
    assert full.memory_bytes == full.memory.total == sum(full.memory.model_dump().values())
    twice = planned(bare, rows, batch_size=8).memory.activations
    assert lora.memory.activations is not None and twice is not None
    assert twice == pytest.approx(2 * lora.memory.activations, rel=0.02)
    assert planned(bare, rows, "ldifs", lora=None).memory.defense == 4 * full.parameters
    again = planned(bare, rows, gradient_checkpointing=True).memory.activations
    assert again is not None and again < lora.memory.activations


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("name", ["llama", "gemma", "opt"])
def test_the_estimate_of_kept_bytes_is_that_of_a_real_forward_pass(
    name: str, lora: LoraSettings | None, tmp_path: Path
) -> None:
    skeleton = open_skeleton(str(write_checkpoint(tmp_path / name, name)))
    training = TrainingSettings(lora=lora)

    def model(made: Any) -> Any:
        made.requires_grad_(lora is None)
        return made if lora is None else attach_lora(made, lora, 0)

    real = model(type(skeleton.model())(skeleton.config)).train()
    held = {parameter.untyped_storage().data_ptr() for parameter in real.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    input_ids_BT = torch.zeros(3, 7, dtype=torch.long)
    padded_BT = torch.ones_like(input_ids_BT)
    padded_BT[0, -1] = 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs = {"input_ids": input_ids_BT, "attention_mask": padded_BT, "labels": input_ids_BT}
        loss = real(**inputs, use_cache=False).loss
    assert kept_bytes(model(skeleton.model()), 3, 7, training) == pytest.approx(sum(kept.values()), rel=0.05)
    del loss


def test_without_a_tokenizer_characters_are_counted(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "model", with_tokenizer=False)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 6)
    plan = planned(folder, rows)
    records = read_records(rows)
    written = sum(len(renderer_for(open_skeleton(str(folder)), "auto", None).prompt_text(row)) for row in records)
    written += sum(len(row.response or "") for row in records)
    assert plan.tokens_from == "characters"
    assert plan.tokens_per_epoch == pytest.approx(written / CHARACTERS_PER_TOKEN, rel=0.1)


def test_a_model_that_is_not_found_is_named() -> None:
    with pytest.raises(UserError, match=r"nobody/nothing: no such folder here, and its config.json could not be"):
        open_skeleton("nobody/nothing")
    with pytest.raises(UserError, match="no such folder"):
        open_skeleton("./nothing")


def test_the_speed_is_measured_by_default() -> None:
    speed = measured_speed(16, (32, 32), TrainingSettings())
    assert speed.source == "measured" and speed.flops_per_second > 1e6


def test_an_adapter_is_planned_on_its_base(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base")
    adapter = tiny.write_adapter(tmp_path / "adapter", base)
    found = open_skeleton(str(adapter))
    assert isinstance(found, Skeleton) and found.config.hidden_size == 32


@pytest.mark.parametrize("command", ["align", "finetune"])
def test_the_command_plans_without_an_output(command: str, bare: Path, tmp_path: Path, antidote: Command) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 8)
    before = tree(tmp_path)
    arguments = [command, bare, "--data", rows, "--rank", 4, "--epochs", 2, "--batch-size", 4]
    plan = StagePlan.model_validate(antidote.done(*arguments, "--plan", "--flops", "2e9", "--json").json)
    assert (plan.steps, plan.speed.flops_per_second) == (4, 2e9)
    shown = antidote.done(*arguments, "--plan").out
    assert "what would be trained" in shown and "measured on" in shown
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "nowhere to write to: pass --out DIR, or --plan"),
        (["--flops", "1e9"], "--flops is for a plan"),
        (["--plan", "--flops", "0"], "--flops 0: give operations a second"),
        (["--plan", "--rows", "99"], "has 8 rows, but 99 are wanted"),
        (["--plan", "--lora-targets", "nothing"], "no layer of this model is named nothing"),
    ],
)
def test_errors_of_a_plan_are_one_line(
    options: list[str], words: str, bare: Path, tmp_path: Path, antidote: Command
) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 8)
    result = antidote("align", bare, "--data", rows, *options)
    assert (result.code, len(result.errors)) == (2, 1)
    assert words in result.errors[0]


def test_the_help_names_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["align", "--help"]) == 0
    assert "--plan" in capsys.readouterr().out
