from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from antidote_llm.cli import run as run_command
from antidote_llm.cli.main import ended, run
from antidote_llm.cli.run import step_json
from antidote_llm.cli.step import run_step
from antidote_llm.data.mixing import prompt_key
from antidote_llm.data.reading import read_records
from antidote_llm.workflows.recipe_steps import Step
from antidote_llm.workflows.specs import EvaluateSpec
from tests.cli.command import Command, tree
from tests.evaluation.server import said, serving
from tests.workflows.small import Small

RECIPES = Path(__file__).parents[2] / "recipes" / "paper"
ARCHITECTURES = {"llama2-7b": "llama", "mistral-7b": "mistral", "gemma-7b": "gemma"}
LLAMA = RECIPES / "llama2-7b.yaml"


def here(step: Step) -> int:
    """Carry out a step in this process, which spares it the imports."""
    return ended(lambda: run_step(step_json(step)))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Small inputs; a recipe's steps run in this process, which spares each of them the imports."""
    monkeypatch.setattr(run_command, "launch", here)
    return Small.write(tmp_path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_recipe_of_the_paper_runs_on_a_tiny_model(name: str, small: Small, antidote: Command) -> None:
    out = small.root / "out"
    model = small.model(ARCHITECTURES[name])
    found = antidote.done("run", RECIPES / f"{name}.yaml", "--model", model, "--out", out, *small.settings(), "--json")
    assert found.json["models"].keys() == {"aligned", "attacked", "repaired"}
    assert all({"tasks.sst2", "compliance_rate"} <= metrics.keys() for metrics in found.json["models"].values())
    assert found.json["stages"]["aligned"]["steps"] == 3
    assert found.json["stages"]["attacked"]["harmful_ratio"] == 0.2
    assert found.json["stages"]["repaired"]["settings"]["alpha"] == 0.1
    assert found.json["comparison"]["gain_kept"].keys() == {"sst2"}
    assert found.json == json.loads((out / "results.json").read_text())


def test_stages_can_be_run_one_at_a_time_and_finished_ones_are_left(small: Small, antidote: Command) -> None:
    out = small.root / "out"
    arguments = ["run", LLAMA, "--model", small.model("llama"), "--out", out, *small.settings()]
    antidote.done(*arguments, "--only", "align")
    aligned = tree(out / "aligned")
    assert not (out / "tuned").exists()
    antidote.done(*arguments, "--only", "finetune,evaluate")
    results = json.loads((out / "results.json").read_text())
    assert results["models"].keys() == {"aligned", "attacked"}
    assert results["comparison"] is None
    found = antidote.done(*arguments)
    assert "gain kept" in found.out and "repaired" in found.out
    assert tree(out / "aligned") == aligned


def test_repair_attack_and_test_share_no_prompt(small: Small, antidote: Command) -> None:
    out = small.root / "out"
    antidote.done(
        *("run", LLAMA, "--model", small.model("llama"), "--out", out, *small.settings(evaluate__harmful_rows=12)),
        *("--only", "align,finetune"),
    )
    realign, test = (
        {prompt_key(record) for record in read_records(out / "data" / name)}
        for name in ("realign.jsonl", "harmful_test.jsonl")
    )
    assert (len(realign), len(test)) == (8, 12)
    assert not realign & test
    commands = json.loads((out / "results.json").read_text())["commands"]
    assert f"--apart-from {out}/data/realign.jsonl --apart-from {out}/data/harmful_test.jsonl" in commands[1]


@pytest.mark.parametrize(
    ("defense", "settings"),
    [
        ("align.defense=vaccine", ["align.settings.rho=1"]),
        ("finetune.defense=lisa", ["finetune.safe=beavertails-safe@{root}/train.jsonl"]),
        ("finetune.defense=ldifs", ["finetune.training.lora=null"]),
    ],
)
def test_a_plan_takes_the_steps_that_are_taken(
    defense: str, settings: list[str], small: Small, antidote: Command
) -> None:
    out = small.root / "out"
    changes = [defense, *(text.format(root=small.root) for text in settings)]
    model = small.model("llama")
    arguments = ["run", LLAMA, "--model", model, *small.settings(), "--only", "align,finetune"]
    arguments += [word for change in changes for word in ("--set", change)]
    arguments += ["--set", "align.training.max_steps=null", "--set", "align.training.epochs=2"]
    if "lisa" in defense:
        arguments += [
            "--set",
            "finetune.settings={{alignment_steps: 2, user_steps: 2}}".replace("{{", "{").replace("}}", "}"),
        ]
    before = tree(small.root)
    plan = antidote.done(*arguments, "--plan", "--flops", "1e9", "--json").json
    assert tree(small.root) == before
    antidote.done(*arguments, "--out", out)
    for planned, folder in zip(plan["trainings"], ("aligned", "tuned"), strict=True):
        record = json.loads((out / folder / "record" / "training.json").read_text())
        assert planned["steps"] == record["steps"]
        assert planned["rows"] == record["data"]["rows"]
        assert planned["trainable_parameters"] == record["trainable_parameters"]
        assert planned["tokens_per_epoch"] == record["data"]["tokens"]
        assert planned["seconds"] == pytest.approx(planned["flops"] / 1e9)


def test_a_plan_prints_commands_tables_and_what_they_rest_on(small: Small, antidote: Command) -> None:
    said = antidote.done("run", LLAMA, "--model", small.model("llama"), *small.settings(), "--plan").out
    assert f"antidote align {small.root}/llama" in said
    assert "antidote evaluate DIR/aligned/model --adapter DIR/repaired/model" in said
    assert "what would be trained" in said and "what would be read and asked" in said
    assert "measured on" in said and "in all:" in said


def test_a_model_that_cannot_be_fetched_is_named(small: Small, antidote: Command) -> None:
    result = antidote("run", LLAMA, *small.settings(), "--plan")
    assert (result.code, result.errors) == (2, result.err.splitlines()[-1:])
    assert "meta-llama/Llama-2-7b-hf: no such folder here, and its config.json could not be fetched" in result.err


BAD = {
    "unknown key": (["align.row=3"], "unknown key align.row (did you mean rows?)"),
    "unknown key of a training": (["align.training.learning_rat=1"], "did you mean learning_rate?"),
    "unknown key of an adapter": (["align.training.lora.rnak=1"], "did you mean rank?"),
    "no data": (["align.data=null"], "align.data"),
    "empty data": (["finetune.data=[]"], "finetune.data"),
    "unknown defense": (["finetune.defense=lissa"], "--defense lissa: no such finetuning defense (did you mean lisa?)"),
    "unknown setting": (["align.settings.rho=1"], "--rho is no setting of sft"),
    "unknown method": (["repair.method=antidot"], "did you mean antidote?"),
    "share above 1": (["finetune.harmful_ratio=1.2"], "finetune.harmful_ratio"),
    "missing file": (["finetune.data=nowhere.jsonl"], "nowhere.jsonl"),
    "too few rows": (["finetune.rows=1000"], "harmful rows are wanted"),
    "defense without its rows": (["finetune.defense=lisa"], "pass --safe DATA"),
    "unknown judge": (["evaluate.judge=beaver-damm"], "beaver-dam"),
    "unknown task": (["evaluate.tasks=sst3"], "sst2"),
    "no such layer": (["finetune.training.lora.targets=[nothing]"], "no layer of this model is named nothing"),
    "no key": (["align"], "--set align: name a key and its value"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_ends_in_one_line_before_any_work(case: str, small: Small, antidote: Command) -> None:
    settings, words = BAD[case]
    out = small.root / "out"
    changes = [word for setting in settings for word in ("--set", setting)]
    result = antidote("run", LLAMA, "--model", small.model("llama"), "--out", out, *small.settings(), *changes)
    assert (result.code, len(result.errors)) == (2, 1), result.err
    assert words in result.errors[0]
    assert not out.exists()


def test_what_the_repair_learns_from_is_not_asked_as_harmless(small: Small, antidote: Command) -> None:
    alike, out = f"beavertails-unsafe@{small.root}/train.jsonl", small.root / "out"
    settings = small.settings(evaluate__harmless=alike)
    result = antidote("run", LLAMA, "--model", small.model("llama"), "--out", out, *settings)
    assert (result.code, len(result.errors)) == (2, 1), result.err
    assert "8 evaluation prompts stand in the calibration rows too: " in result.errors[0]
    assert "train.jsonl:" in result.errors[0] and not out.exists()


def test_a_missing_part_is_named(small: Small, antidote: Command) -> None:
    text = LLAMA.read_text().replace("  data: [beavertails-safe]\n", "", 1)
    (small.root / "short.yaml").write_text(text)
    result = antidote("run", small.root / "short.yaml", "--out", small.root / "out")
    assert (result.code, len(result.errors)) == (2, 1)
    assert "align.data is missing: rows of prompt and response" in result.errors[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paper/llama2-7"], "did you mean paper/llama2-7b?"),
        ([LLAMA, "--only", "finetun"], "did you mean finetune?"),
        ([LLAMA, "--only", "finetune"], "add align to --only"),
        ([LLAMA, "--flops", "1e9"], "--flops is for a plan"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], words: str, small: Small, antidote: Command
) -> None:
    result = antidote("run", *arguments, "--out", small.root / "out")
    assert (result.code, len(result.errors)) == (2, 1)
    assert words in result.errors[0]


def test_a_stage_that_fails_ends_the_run_with_its_line(small: Small, antidote: Command) -> None:
    model, out = small.model("llama"), small.root / "out"
    (model / "model.safetensors").unlink()
    result = antidote("run", LLAMA, "--model", model, "--out", out, *small.settings())
    assert result.code == 2
    assert result.errors == [f"error: {model}: no model.safetensors: the weights are missing: fetch them"]
    assert "[1/6]" in result.err and "[2/6]" not in result.err
    assert not (out / "aligned").exists() and not (out / "results.json").exists()


def test_a_model_that_is_nowhere_is_found_before_anything_is_written(small: Small, antidote: Command) -> None:
    out = small.root / "out"
    result = antidote("run", LLAMA, "--model", "nobody/nothing", "--out", out, *small.settings())
    assert (result.code, len(result.errors)) == (2, 1)
    assert "its config.json could not be fetched" in result.errors[0]
    assert not out.exists()


def test_a_recipe_sends_no_key_that_names_no_server(
    small: Small, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTIDOTE_ENDPOINT_KEY", "own-key-1234")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-1234")
    arguments = ["run", LLAMA, "--model", small.model("llama"), "--only", "align,evaluate"]
    with serving(lambda _: said("REFUSAL")) as server:
        settings = small.settings(evaluate__judge=f"endpoint={server.url}#m")
        result = antidote.done(*arguments, "--out", small.root / "out", *settings)
        assert "ANTIDOTE_ENDPOINT_KEY is not sent to" in result.err and "ANTIDOTE_ENDPOINT_URL" in result.err
        assert server.asked and all("Authorization" not in headers for _, _, headers in server.asked)
        assert os.environ["ANTIDOTE_ENDPOINT_KEY"] == "own-key-1234"

        monkeypatch.setenv("ANTIDOTE_ENDPOINT_URL", server.url)
        monkeypatch.setenv("ANTIDOTE_CACHE", str(small.root / "cache"))
        server.asked.clear()
        antidote.done(*arguments, "--out", small.root / "tied", *settings)
        assert {headers["Authorization"] for _, _, headers in server.asked} == {"Bearer own-key-1234"}
    for secret in (b"own-key-1234", b"sk-openai-1234"):
        assert all(secret not in path.read_bytes() for path in small.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("options", [["--plan"], ["--only", "align"]])
@pytest.mark.parametrize("url", ["https://me:hid-den@host.example/v1", "https://host.example/v1?key=hid-den"])
def test_a_secret_in_a_recipe_s_address_is_not_repeated(
    small: Small, antidote: Command, options: list[str], url: str
) -> None:
    out, settings = small.root / "out", small.settings(evaluate__judge=f"endpoint={url}#m")
    result = antidote("run", LLAMA, "--model", small.root / "none", "--out", out, *settings, *options)
    assert (result.code, len(result.errors)) == (2, 1) and "ANTIDOTE_ENDPOINT_KEY" in result.errors[0]
    assert "hid-den" not in result.out + result.err and not out.exists()


def test_a_step_runs_in_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = EvaluateSpec(model=str(tmp_path / "none"), harmful=str(tmp_path / "none.jsonl"))
    assert run_command.launch(Step("evaluate", "none", spec)) == 2
    assert "none.jsonl" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("aligned/model/model.safetensors", "finetune"),
        ("aligned/record/training.json", "evaluate"),
        ("tuned/model/adapter_model.safetensors", "repair"),
        ("repaired/model/adapter_model.safetensors", "evaluate"),
        ("repaired/record/repair.json", "evaluate"),
        ("data/realign.jsonl", "repair"),
        ("evaluations/attacked/evaluation.json", "evaluate"),
    ],
)
def test_a_finished_stage_that_was_changed_is_not_gone_on_from(
    name: str,
    only: str,
    finished_run: tuple[list[object], Path],
    antidote: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, finished = finished_run
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    data = bytearray((out / name).read_bytes())
    # A number of a JSON object, a letter of a row, the last byte of weights.
    data[data.rindex({".json": b"1", ".jsonl": b"o"}.get(Path(name).suffix, data[-1:]))] ^= 3
    (out / name).write_bytes(data)
    monkeypatch.setattr(run_command, "launch", here)
    result = antidote(*arguments, "--out", out, "--only", only)
    assert result.code == 2
    assert name.rpartition("/")[2] in result.errors[-1] and str(out) in result.errors[-1]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Path]:
    """A recipe that ran through once, and its command."""
    small = Small.write(tmp_path_factory.mktemp("run"))
    out = small.root / "out"
    arguments: list[object] = ["run", LLAMA, "--model", small.model("llama"), *small.settings()]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_command, "launch", here)
        patched.setenv("ANTIDOTE_CACHE", str(small.root / "cache"))
        assert run([str(part) for part in (*arguments, "--out", out)]) == 0
    return arguments, out
