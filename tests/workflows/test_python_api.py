"""The Python functions do what the commands do, to the same bytes."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import antidote_llm as antidote
from antidote_llm.io.files import sha256_file
from tests import tiny
from tests.cli.command import Command, Place, inputs
from tests.conftest import Folders


@pytest.fixture
def place(tmp_path: Path, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return inputs(tmp_path, folders)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def bytes_of(out: Path) -> dict[str, str]:
    """Return the hashes of everything that a repair writes, but for the records of how long it took."""
    files = [*(out / "model").iterdir(), *(out / "record").glob("*.safetensors")]
    return {str(path.relative_to(out)): sha256_file(path) for path in files}


def test_a_repair_has_the_bytes_of_the_command(place: Place, command: Command) -> None:
    command.done(*place.repair("--alpha", 0.3))
    result = antidote.repair(
        place.base, adapter=place.adapter, harmful=place.harmful, evaluate="none", alpha=0.3, out=place.root / "python"
    )
    assert bytes_of(place.root / "python") == bytes_of(place.out)
    assert result.model_dir == place.root / "python" / "model"
    assert result.patch.is_file()
    # Nothing was evaluated, so nothing is called good.
    assert result.verdict.kind == "unknown"
    assert result.record.settings["alpha"] == 0.3
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.base), result.model_dir)


def test_a_loaded_adapter_is_repaired_as_its_folder_is(place: Place) -> None:
    by_name = antidote.repair(
        place.base, adapter=place.adapter, harmful=place.harmful, evaluate="none", out=place.root / "named"
    )
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.base), place.adapter)
    result = antidote.repair(loaded, harmful=place.harmful, evaluate="none", out=place.root / "loaded")
    name = "adapter_model.safetensors"
    assert sha256_file(result.model_dir / name) == sha256_file(by_name.model_dir / name)


def test_a_loaded_whole_model_is_evaluated(place: Place) -> None:
    model = AutoModelForCausalLM.from_pretrained(place.base)
    loaded = antidote.evaluate(model, harmful=place.harmful, max_new_tokens=4)
    named = antidote.evaluate(place.base, harmful=place.harmful, max_new_tokens=4)
    assert loaded.evaluation.metrics == named.evaluation.metrics


def test_the_steps_one_by_one_come_to_the_same_bytes(place: Place) -> None:
    whole = antidote.repair(
        place.base, adapter=place.adapter, harmful=place.harmful, evaluate="none", alpha=0.3, out=place.root / "whole"
    )
    model = antidote.load_model(str(place.base), str(place.adapter))
    statistics = antidote.collect(model, place.harmful)
    plan = antidote.method("antidote", alpha=0.3).plan(model, statistics)
    site = plan.planned.target.sites[0]
    assert plan.plan.edit(site).after_OI.shape == site.shape
    result = plan.write(place.root / "steps")
    assert bytes_of(place.root / "steps") == bytes_of(place.root / "whole")
    assert result.verdict == whole.verdict
    assert (
        antidote.method("antidote", alpha=0.3)
        .plan(model, antidote.collect(model, [place.harmful]))
        .write(place.root / "steps")
        .finished_before
    )


def test_a_method_that_reads_statistics_says_so(place: Place) -> None:
    model = antidote.load_model(str(place.base), str(place.adapter))
    with pytest.raises(antidote.UserError, match="antidote reads statistics: pass what collect"):
        antidote.method("antidote").plan(model)
    assert antidote.method("magnitude").plan(model).write(place.root / "magnitude").patch.is_file()


def test_a_patch_goes_off_and_on_again(place: Place) -> None:
    result = antidote.repair(
        place.base, adapter=place.adapter, harmful=place.harmful, evaluate="none", out=place.root / "repaired"
    )
    reverted = antidote.revert_patch(result.patch, onto=result.model_dir, out=place.root / "original")
    name = "adapter_model.safetensors"
    assert sha256_file(reverted.out / name) == sha256_file(place.adapter / name)
    applied = antidote.apply_patch(result.out or "", onto=reverted.out, out=place.root / "again")
    assert sha256_file(applied.out / name) == sha256_file(result.model_dir / name)
    assert antidote.read_patch(result.patch).description.files


def test_a_training_has_the_bytes_of_the_command(place: Place, command: Command) -> None:
    rows = tiny.write_rows(place.root / "rows.jsonl")
    words = ["--data", rows, "--max-steps", 2, "--rank", 2, "--lora-alpha", 4, "--batch-size", 2]
    command.done("finetune", place.base, *words, "--out", place.root / "command")
    result = antidote.train(
        "finetune",
        place.base,
        data=rows,
        max_steps=2,
        rank=2,
        lora_alpha=4,
        batch_size=2,
        out=place.root / "python",
    )
    name = "model/adapter_model.safetensors"
    assert sha256_file(place.root / "python" / name) == sha256_file(place.root / "command" / name)
    assert result.record.steps == 2


def test_two_evaluations_are_compared_by_folder_or_by_object(place: Place) -> None:
    before = antidote.evaluate(
        place.base, adapter=place.adapter, harmful=place.harmful, max_new_tokens=4, out=place.root / "before"
    )
    after = antidote.evaluate(place.base, harmful=place.harmful, max_new_tokens=4)
    by_object = antidote.compare(before, after)
    assert antidote.compare(place.root / "before", after.evaluation) == by_object


def test_errors_name_arguments_and_not_options(place: Place) -> None:
    with pytest.raises(antidote.UserError, match="alfa: no such setting of repair"):
        antidote.repair(place.base, alfa=1)
    with pytest.raises(antidote.UserError, match="pass out DIR, or dry_run"):
        antidote.repair(place.base, harmful=place.harmful)
    with pytest.raises(antidote.UserError, match="max_ram zz: not a size"):
        antidote.repair(place.base, harmful=place.harmful, max_ram="zz", dry_run=True)


def test_an_object_in_the_place_of_a_name_is_refused_by_its_type(place: Place) -> None:
    judge = antidote.Verdict
    with pytest.raises(antidote.UserError, match="judge takes a name, not an object of type"):
        antidote.evaluate(place.base, harmful=place.harmful, judge=judge)
    with pytest.raises(antidote.UserError, match="method takes a name, not an object of type RepairMethod"):
        antidote.repair(place.base, method=antidote.methods()["antidote"], dry_run=True)


def test_options_are_shown_to_those_who_ask() -> None:
    names = inspect.signature(antidote.repair).parameters
    assert {"model", "adapter", "harmful", "out", "method", "alpha", "reporter"} <= names.keys()
    assert {"data", "defense", "learning_rate", "lora_alpha"} <= inspect.signature(antidote.train).parameters.keys()


def test_importing_the_package_loads_nothing_heavy_and_changes_nothing() -> None:
    code = (
        "import logging, sys, warnings; before = len(warnings.filters), logging.getLogger('bitsandbytes').level\n"
        "import antidote_llm\n"
        "assert before == (len(warnings.filters), logging.getLogger('bitsandbytes').level)\n"
        "assert not {'torch', 'transformers', 'peft', 'pydantic'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_python_alone_can_ask_wrongly_is_refused(place: Place) -> None:
    opened = antidote.load_model(place.base, place.adapter)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.base), place.adapter)
    whole = AutoModelForCausalLM.from_pretrained(place.base)
    asked: dict[str, Any] = {"harmful": place.harmful, "evaluate": "none", "out": place.root / "refused"}
    rows: dict[str, Any] = {"data": place.harmful, "out": place.root / "refused"}
    with pytest.raises(antidote.UserError, match="model is a LoadedModel"):
        antidote.repair(opened, **asked)
    with pytest.raises(antidote.UserError, match="leave adapter out"):
        antidote.repair(loaded, adapter=place.adapter, **asked)
    with pytest.raises(antidote.UserError, match=r"adaptor: no such setting of repair \(did you mean adapter\?\)"):
        antidote.repair(place.base, adaptor=place.adapter, **asked)
    with pytest.raises(antidote.UserError, match="merge=True"):
        antidote.train("finetune", whole, **rows)
    with pytest.raises(antidote.UserError, match="True or False"):
        antidote.train("finetune", place.base, lora={"rank": 2}, **rows)
    with pytest.raises(antidote.UserError, match="epochs is a part of training"):
        antidote.train("finetune", place.base, training={"epochs": 1}, epochs=2, **rows)
    assert not (place.root / "refused").exists()


def test_statistics_of_other_sites_are_refused(place: Place) -> None:
    model = antidote.load_model(place.base, place.adapter)
    some = antidote.resolve_target(model, pattern="q_proj")
    statistics = antidote.collect(model, place.harmful, target=some)
    with pytest.raises(antidote.UserError, match="collect them with this target"):
        antidote.method("antidote").plan(model, statistics, target=antidote.resolve_target(model))


def test_the_repair_of_a_loaded_whole_model_has_its_tokenizer(place: Place) -> None:
    model = AutoModelForCausalLM.from_pretrained(place.base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    asked: dict[str, Any] = {"harmful": place.harmful, "evaluate": "none", "out": place.root / "whole"}
    result = antidote.repair(model, aligned=place.base, **asked)
    assert (result.model_dir / "tokenizer.json").read_bytes() == (place.base / "tokenizer.json").read_bytes()


def test_the_callers_random_numbers_stay_as_they_are(place: Place) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    antidote.repair(place.base, adapter=place.adapter, harmful=place.harmful, evaluate="none", dry_run=True)
    assert torch.equal(torch.rand(2), wanted)


def test_every_process_of_a_distributed_run_has_the_result(place: Place) -> None:
    code = (
        "import antidote_llm as antidote, os\n"
        f"found = antidote.repair({str(place.base)!r}, adapter={str(place.adapter)!r}, harmful={str(place.harmful)!r}, "
        "evaluate='none', out='repaired')\n"
        "print(os.environ['RANK'], found.verdict.kind, found.model_dir.is_dir())\n"
    )
    script = place.write("script.py", code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, cwd=place.root, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 unknown True", "1 unknown True"]
