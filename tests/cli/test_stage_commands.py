"""Stages 1 and 2 through the real command: what they write, that it loads, repairs and resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import integration_utils

from antidote_llm.data.files import write_jsonl
from antidote_llm.training import trainer
from antidote_llm.training.defense import defenses
from tests import tiny
from tests.cli.command import Command, Place, tree
from tests.training.launching import launched
from tests.training.test_integrations import Noting

QUICK = ("--rank", "4", "--epochs", "1", "--batch-size", "4", "--learning-rate", "1e-2")
STAGES = [
    *(("align", name) for name in defenses("alignment")),
    *(("finetune", name) for name in defenses("finetuning")),
]


def stage(place: Place, command: str, *more: object) -> list[object]:
    """Return the arguments of a quick training."""
    return [command, place.base, "--data", place.harmful, *QUICK, "--out", place.out, *more]


def companions(place: Place, command: str, defense: str) -> list[object]:
    """Return the option of the rows that a defense learns from beside the stage's own: the same prompts, answered."""
    if not {found.name: found.needs_auxiliary for found in _defenses(command)}[defense]:
        return []
    rows = [json.loads(line) for line in place.harmful.read_text().splitlines()]
    path = place.root / "companion.jsonl"
    write_jsonl(path, [{"prompt": row["prompt"], "response": tiny.words(4, 77)} for row in rows])
    return ["--harmful" if command == "align" else "--safe", path]


def _defenses(command: str) -> list[Any]:
    return list(defenses("alignment" if command == "align" else "finetuning").values())


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize(("command", "defense"), STAGES, ids=lambda part: part)
def test_every_defense_trains_through_the_command(command: str, defense: str, place: Place, antidote: Command) -> None:
    beside = companions(place, command, defense)
    before = tree(place.root)
    result = antidote.done(*stage(place, command, "--defense", defense, *beside, "--json")).json
    assert (result["defense"], result["data"]["rows"]) == (defense, 12)
    assert result["steps"] >= 3
    assert {path: found for path, found in tree(place.root).items() if not path.startswith("results")} == before
    assert not [path for path in place.out.parent.iterdir() if path != place.out]
    base = AutoModelForCausalLM.from_pretrained(place.base)
    model = place.out / "model"
    if command == "align":
        trained = AutoModelForCausalLM.from_pretrained(model)
        moved = [name for name, value in base.state_dict().items() if not value.equal(trained.state_dict()[name])]
        assert moved and all(name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") for name in moved)
        assert AutoTokenizer.from_pretrained(model).chat_template
    else:
        assert isinstance(PeftModel.from_pretrained(base, model), PeftModel)
        assert any(value.abs().max() > 0 for name, value in _weights(model).items() if "lora_B" in name)


def test_an_adapter_is_repaired_without_naming_its_base(place: Place, antidote: Command) -> None:
    antidote.done(*stage(place, "finetune"))
    fixed = place.root / "fixed"
    antidote.done("repair", place.out / "model", "--harmful", place.harmful, "--evaluate", "none", "--out", fixed)
    assert (fixed / "model" / "adapter_model.safetensors").is_file()


def test_merged_is_the_adapter_on_its_base(place: Place, antidote: Command) -> None:
    antidote.done(*stage(place, "finetune"))
    merged = place.root / "merged"
    antidote.done(*stage(place, "finetune", "--merge", "--out", merged))
    base = AutoModelForCausalLM.from_pretrained(place.base)
    wanted = PeftModel.from_pretrained(base, place.out / "model").merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(merged / "model").state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in wanted.items())


def test_whole_weights_keep_the_checkpoints_type(place: Place, antidote: Command) -> None:
    tiny.write_model(place.root / "half", dtype=torch.bfloat16)
    arguments = ["--full", "--max-steps", "2", "--batch-size", "4", "--out", place.out]
    antidote.done("align", place.root / "half", "--data", place.harmful, *arguments)
    assert {value.dtype for value in _weights(place.out / "model").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(place.out / "model").dtype == torch.bfloat16


def test_a_finished_training_is_left(place: Place, antidote: Command) -> None:
    antidote.done(*stage(place, "finetune"))
    before = tree(place.out)
    again = antidote.done(*stage(place, "finetune"))
    assert "finished already" in again.err and tree(place.out) == before
    other = antidote(*stage(place, "finetune", "--seed", "1"))
    assert other.code == 2 and "other inputs or settings" in other.errors[0]
    weights = place.out / "model" / "adapter_model.safetensors"
    weights.rename(place.root / "aside")
    assert "(model/adapter_model.safetensors): remove it" in antidote(*stage(place, "finetune")).errors[0]
    (place.root / "aside").rename(weights)
    (place.out / "record" / "training.json").write_text("{")
    assert "(record/training.json): remove it" in antidote(*stage(place, "finetune")).errors[0]


def test_the_mix_has_exact_counts(place: Place, antidote: Command) -> None:
    harmful = tiny.write_rows(place.root / "worse.jsonl", count=8, seed=9)
    mix = ("--harmful", harmful, "--harmful-ratio", "0.25", "--rows", "8")
    result = antidote.done(*stage(place, "finetune", *mix, "--json")).json
    assert (result["data"]["rows"], result["harmful_ratio"], result["steps"]) == (8, 0.25, 2)
    assert result["data"]["references"] == [str(place.harmful), str(harmful)]


def test_losses_are_written_step_by_step(place: Place, antidote: Command) -> None:
    result = antidote.done(*stage(place, "finetune", "--json")).json
    lines = (place.out / "record" / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,loss" and len(lines) == result["steps"] + 1
    assert float(lines[-1].split(",")[1]) == result["last_loss"]


KILLED = """
import os, signal, sys
from antidote_llm.training import trainer
kept = trainer._Watch.on_step_end
def deadly(self, args, state, control, **more):
    kept(self, args, state, control, **more)
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
trainer._Watch.on_step_end = deadly
from antidote_llm.cli.main import run
run(sys.argv[1:])
"""


def test_a_killed_command_goes_on_from_its_checkpoint_to_the_same_bits(place: Place, antidote: Command) -> None:
    command = stage(place, "finetune", "--lora-dropout", "0.2", "--epochs", "3", "--save-every", "2")
    uninterrupted = place.root / "uninterrupted"
    antidote.done(*command, "--out", uninterrupted)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], capture_output=True, env=environment)
    assert killed.returncode == -9
    assert not place.out.exists()
    result = antidote.done(*command, "--json").json
    assert result["resumed_from"] == 4
    for name in ("model/adapter_model.safetensors", "record/losses.csv"):
        assert (place.out / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert [path.name for path in place.out.parent.iterdir()] == [place.out.name]


def test_an_interrupted_training_keeps_its_checkpoint_whatever_is_asked_next(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = stage(place, "finetune", "--save-every", "1")
    on_step_end = trainer._Watch.on_step_end

    def interrupt(*arguments: Any, **more: Any) -> None:
        on_step_end(*arguments, **more)
        if arguments[2].global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer._Watch, "on_step_end", interrupt)
        interrupted = antidote(*command)
    assert (interrupted.code, interrupted.err.splitlines()[-1]) == (130, "interrupted")
    assert "the same command goes on from checkpoint-1" in interrupted.err
    (work,) = place.out.parent.iterdir()
    for mistake in (("--report-to", "nonsense"), ("--data", place.root / "nowhere.jsonl")):
        assert antidote(*command, *mistake).code == 2
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "--batch-size 6" in antidote(*command).errors[0]
    monkeypatch.delenv("WORLD_SIZE")
    assert [path.parent for path in work.glob("checkpoint-*/whole")]
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "noting", Noting)
    resumed = antidote.done(*command, "--report-to", "noting", "--json")
    assert "going on from checkpoint-1" in resumed.err
    result = resumed.json
    assert (result["resumed_from"], result["steps"]) == (1, 3)
    assert (place.out / "record" / "logs" / "events").is_file()
    assert list(place.out.parent.iterdir()) == [place.out]


@pytest.mark.parametrize("command", ["align", "finetune"])
def test_an_adapter_is_no_model_to_start_from(command: str, place: Place, antidote: Command) -> None:
    before = tree(place.root)
    result = antidote(command, place.adapter, "--data", place.harmful, *QUICK, "--out", place.out)
    assert result.code == 2 and f"{place.adapter} is an adapter" in result.errors[0]
    assert tree(place.root) == before


def test_two_processes_write_one_result(place: Place, antidote: Command) -> None:
    one = place.root / "one"
    antidote.done(*stage(place, "finetune", "--out", one))
    ended = launched(
        *("--standalone", "--nproc-per-node", 2, "-m", "antidote_llm", *stage(place, "finetune", "--json")),
        seconds=600,
        environment={"ANTIDOTE_CACHE": str(place.root / "cache")},
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["processes"], result["steps"]) == (2, 3)
    found, wanted = _weights(place.out / "model"), _weights(one / "model")
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in wanted.items())
