"""``antidote repair``: what it writes, what it says, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from antidote_llm.cli.main import run
from antidote_llm.io.files import sha256_file
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.repairs.record import RepairRecord
from tests import tiny
from tests.cli.command import Command, Place, edit_json, tree
from tests.conftest import Folders
from tests.fine_tunes import write_fine_tune

ADAPTER_FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def finished(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repair with everything evaluated. Read-only."""
    root = tmp_path_factory.mktemp("finished")
    tasks = tiny.write_rows(root / "task.jsonl", count=4, seed=8)
    harmless = tiny.write_rows(root / "harmless.jsonl", count=3, seed=9)
    asked = ["--task", f"t={tasks}", "--harmless", str(harmless), "--max-new-tokens", "6", "--no-cache"]
    inputs = [str(folders.base), "--adapter", str(folders.adapter), "--harmful", str(folders.harmful)]
    assert run(["repair", *inputs, *asked, "--out", str(root / "out")]) == 0
    return root / "out"


def logits(base: Path, adapter: Path | None = None) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found: Tensor = model.eval()(torch.arange(5, 35).reshape(2, 15)).logits
    return found


def test_the_folder_holds_what_ships_and_what_stays_home(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == ["model", "record"]
    assert {path.name for path in (finished / "model").iterdir()} == {ADAPTER_FILE, "adapter_config.json", "README.md"}
    record = {path.name for path in (finished / "record").iterdir()}
    files = {"patch.safetensors", "repair.json", "report.html", "manifest.json", "model_card.md"}
    assert record == files | {"before", "after", "aligned"}
    for name in ("before", "after", "aligned"):
        evaluation = json.loads((finished / "record" / name / "evaluation.json").read_text())
        assert {"compliance_rate", "over_refusal_rate", "tasks.t"} <= evaluation["metrics"].keys()
        assert (finished / "record" / name / "answers.parquet").is_file()


def test_what_stays_home_is_not_in_what_ships(finished: Path) -> None:
    shipped = "".join(path.read_text(errors="replace") for path in (finished / "model").iterdir())
    assert not any(json.loads(line)["prompt"] in shipped for line in open_prompts(finished))


def open_prompts(finished: Path) -> list[str]:
    return (finished.parent / "task.jsonl").read_text().splitlines()


def test_the_repaired_adapter_loads_and_answers_otherwise(finished: Path, folders: Folders) -> None:
    repaired = logits(folders.base, finished / "model")
    assert torch.isfinite(repaired).all()
    assert not torch.equal(repaired, logits(folders.base, folders.adapter))
    assert not torch.equal(repaired, logits(folders.base))


def test_the_record_is_true(finished: Path, folders: Folders) -> None:
    record = RepairRecord.model_validate_json((finished / "record" / "repair.json").read_text())
    assert record.adapter is not None and record.patch is not None and record.calibration is not None
    assert record.base.sha256["model.safetensors"] == sha256_file(folders.base / "model.safetensors")
    assert record.patch.sha256_before == {ADAPTER_FILE: sha256_file(folders.adapter / ADAPTER_FILE)}
    assert record.patch.sha256_after == {ADAPTER_FILE: sha256_file(finished / "model" / ADAPTER_FILE)}
    assert record.patch.size_bytes == (finished / "record" / "patch.safetensors").stat().st_size
    changed = 0
    before, after = (open_tensor_file(folder / ADAPTER_FILE) for folder in (folders.adapter, finished / "model"))
    for key in before.entries:
        changed += int((before.read(key) != after.read(key)).sum())
    assert record.totals.changed == changed > 0
    # A fifth of the prompts is kept apart for the evaluation.
    assert record.calibration.rows == 10
    assert {"open", "calibrate", "plan", "write", "verify", "evaluate"} <= record.wall_seconds.keys()


def test_json_is_one_object_and_nothing_else(place: Place, antidote: Command) -> None:
    result = antidote.done(*place.repair("--json"))
    assert result.json["finished_before"] is False
    assert result.json["repair"]["totals"]["changed"] > 0
    assert result.json["out"] == str(place.out)
    assert "statistics" in result.err


def test_without_json_the_result_is_a_table_on_standard_output(place: Place, antidote: Command) -> None:
    result = antidote.done(*place.repair())
    assert "q_proj lora_A" in result.out
    assert str(place.out / "record" / "report.html") in result.out


def test_a_dry_run_counts_and_writes_nothing(place: Place, antidote: Command) -> None:
    before = tree(place.root)
    said = antidote.done(*place.repair("--dry-run")).out
    counts = antidote.done(*place.repair("--dry-run", "--json")).json["totals"]
    assert tree(place.root) == before
    assert f"{counts['chosen']:,}" in said and counts["chosen"] > 0
    assert antidote.done(*place.repair("--json")).json["repair"]["totals"] == counts


def test_a_dry_run_needs_no_out(place: Place, antidote: Command) -> None:
    assert antidote.done(*place.repair()[:-2], "--dry-run", "--json").json["patch"] is None


def test_a_finished_repair_is_reported_and_left(place: Place, antidote: Command) -> None:
    first = antidote.done(*place.repair("--json"))
    before = tree(place.root)
    again = antidote.done(*place.repair("--json"))
    assert "finished already" in again.err
    assert again.json == {**first.json, "finished_before": True}
    assert tree(place.root) == before


def test_an_empty_folder_at_out_is_filled(place: Place, antidote: Command) -> None:
    place.out.mkdir(parents=True)
    antidote.done(*place.repair())
    assert (place.out / "model" / ADAPTER_FILE).is_file()


def test_the_same_command_gives_the_same_bytes(place: Place, antidote: Command) -> None:
    antidote.done(*place.repair("--no-cache"))
    other = place.root / "again"
    antidote.done(*place.repair("--no-cache"), "--out", other)
    for name in (f"model/{ADAPTER_FILE}", "model/adapter_config.json", "record/patch.safetensors"):
        assert sha256_file(place.out / name) == sha256_file(other / name)


def test_inputs_are_never_touched(place: Place, antidote: Command) -> None:
    before = [tree(folder) for folder in (place.base, place.adapter)]
    antidote.done(*place.repair("--alpha", "0.7"))
    assert [tree(folder) for folder in (place.base, place.adapter)] == before


def test_only_the_result_is_left_behind(place: Place, antidote: Command) -> None:
    before = set(tree(place.root))
    antidote.done(*place.repair())
    new = {name for name in set(tree(place.root)) - before if not name.startswith("results/of today/repaired")}
    assert new == {"results", "results/of today"}


@pytest.mark.parametrize("method", ["antidote", "random", "magnitude"])
def test_alpha_1_says_exactly_what_the_base_says(place: Place, antidote: Command, method: str) -> None:
    antidote.done(*place.repair("--alpha", "1", "--method", method))
    assert torch.equal(logits(place.base, place.out / "model"), logits(place.base))


@pytest.mark.parametrize("method", ["antidote", "random", "magnitude", "interpolate"])
def test_alpha_0_is_the_same_file(place: Place, antidote: Command, method: str) -> None:
    antidote.done(*place.repair("--alpha", "0", "--method", method))
    assert sha256_file(place.out / "model" / ADAPTER_FILE) == sha256_file(place.adapter / ADAPTER_FILE)


def test_rows_of_token_ids_need_no_tokenizer(place: Place, antidote: Command) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (place.base / name).unlink()
    rows = place.write("ids.jsonl", "".join(json.dumps({"input_ids": [n, 9, n + 3]}) + "\n" for n in range(5, 20)))
    found = antidote.done(*replace(place, harmful=rows).repair("--json")).json["repair"]["calibration"]
    assert (found["rows"], found["tokens"]) == (15, 45)


@pytest.mark.parametrize("named", ["absolute", "relative"])
def test_an_adapter_alone_finds_its_base(place: Place, antidote: Command, named: str) -> None:
    name = str(place.base) if named == "absolute" else "../base"
    edit_json(place.adapter / "adapter_config.json", base_model_name_or_path=name)
    elsewhere = Path(shutil.copytree(place.adapter, place.root / "folders" / "adapter"))
    shutil.copytree(place.base, place.root / "folders" / "base")
    adapter = elsewhere if named == "relative" else place.adapter
    antidote.done("repair", adapter, *place.repair()[4:])
    antidote.done(*place.repair(), "--out", place.root / "both named")
    alone, both = (sha256_file(out / "model" / ADAPTER_FILE) for out in (place.out, place.root / "both named"))
    assert alone == both


def test_tensors_that_are_no_lora_stay_and_are_named(place: Place, antidote: Command) -> None:
    adapter = tiny.write_adapter(place.root / "with head", place.base, modules_to_save=["lm_head"])
    result = antidote.done(*replace(place, adapter=adapter).repair())
    assert "what is not edited (1 tensor: base_model.model.lm_head.weight): it stays" in " ".join(result.err.split())
    assert "outside these matrices: 1 tensor, update norm" in result.out
    before, after = (open_tensor_file(folder / ADAPTER_FILE) for folder in (adapter, place.out / "model"))
    (head,) = (key for key in before.entries if "lm_head" in key)
    assert before.read_bytes(head) == after.read_bytes(head)


def test_pickles_beside_the_adapter_do_not_ship(place: Place, antidote: Command) -> None:
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json"):
        (place.adapter / name).write_bytes(b"{}")
    antidote.done(*place.repair())
    shipped = {path.name for path in (place.out / "model").iterdir()}
    assert shipped == {ADAPTER_FILE, "adapter_config.json", "README.md"}


def test_sites_are_listed_and_nothing_is_done(place: Place, antidote: Command) -> None:
    tuned = write_fine_tune(place.root / "tuned", place.base)
    before = tree(place.root)
    given = ["repair", tuned, "--aligned", place.base, "--sites", "qkv", "--list-sites"]
    found = antidote.done(*given, "--json").json
    assert (found["target"], len(found["sites"])) == ("delta", 6)
    assert found["sites"][0] == {
        "name": "model.layers.0.self_attn.q_proj",
        "module": "model.layers.0.self_attn.q_proj",
        "role": "weight",
        "layer": 0,
        "file": "model.safetensors",
        "key": "model.layers.0.self_attn.q_proj.weight",
        "part": None,
        "expert": None,
        "rows": 32,
        "columns": 32,
    }
    assert found["entries"] == sum(site["rows"] * site["columns"] for site in found["sites"]) == 2 * 32 * (32 + 2 * 16)
    keys = set(open_tensor_file(tuned / "model.safetensors").entries)
    assert set(found["outside"]) == keys - {site["key"] for site in found["sites"]}

    said = antidote.done(*given).out
    assert all(site["name"] in said for site in found["sites"])
    assert "6 matrices of the delta" in said and f"{found['entries']:,} entries" in said
    adapted = antidote.done(*place.repair("--list-sites", "--json")).json
    assert (adapted["target"], len(adapted["sites"]), adapted["outside"]) == ("adapter", 12, [])
    assert tree(place.root) == before


def test_a_repaired_fine_tune_loads(place: Place, antidote: Command) -> None:
    tuned = write_fine_tune(place.root / "tuned", place.base)
    before = tree(tuned), tree(place.base)
    given = ["repair", tuned, "--aligned", place.base, "--harmful", place.harmful, "--max-new-tokens", "3"]
    found = antidote.done(*given, "--out", place.out, "--json").json
    assert (tree(tuned), tree(place.base)) == before
    assert found["evaluations"].keys() == {"aligned", "before", "after"}
    assert found["repair"]["target"] == "delta"
    repaired = logits(place.out / "model")
    assert not torch.equal(repaired, logits(tuned)) and not torch.equal(repaired, logits(place.base))

    antidote.done(*given[:-2], "--evaluate", "none", "--alpha", "1", "--restore-outside", "--out", "all of it")
    assert torch.equal(logits(Path("all of it") / "model"), logits(place.base))


def test_bare_weights_are_edited_with_a_warning(place: Place, antidote: Command) -> None:
    given = ["repair", place.base, "--harmful", place.harmful, "--evaluate", "none", "--out", place.out]
    refused = antidote(*given)
    assert refused.code == 2 and "ask for --target weight by name" in refused.errors[0]
    result = antidote.done(*given, "--target", "weight", "--sites", "mlp", "--alpha", "0.1", "--json")
    assert "warning" in result.err and "--aligned" in result.err
    assert result.json["repair"]["target"] == "weight"


def test_other_sites_or_what_lies_outside_make_another_result(place: Place, antidote: Command) -> None:
    tuned = write_fine_tune(place.root / "tuned", place.base)
    given = ["repair", tuned, "--aligned", place.base, "--method", "magnitude", "--out", place.out]
    antidote.done(*given)
    for more in (["--sites", "mlp"], ["--restore-outside"]):
        result = antidote(*given, *more)
        assert result.code == 2 and "another" in result.err


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("asked.jsonl", '{"prompt": "zob"}', ("positions", "pass --max-new-tokens 1")),
        ("asked.jsonl", '{"input_ids": [5, 35]}', ("asked.jsonl:1", "vocabulary")),
        ("task.jsonl", '{"input_ids": [5, 6]}', ("task.jsonl:1", "needs a response")),
    ],
)
def test_the_questions_are_checked_before_anything_is_done(
    place: Place,
    antidote: Command,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    words: tuple[str, ...],
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the repair has begun")

    for step in ("harmful_data", "plan_repair"):
        monkeypatch.setattr(f"antidote_llm.workflows.repair.{step}", too_late)
    path = place.write(name, text)
    evaluate = ["--task", f"t={path}"] if name == "task.jsonl" else ["--evaluate", path]
    length = "500" if "prompt" in text else "4"
    for more in ([], ["--dry-run"]):
        result = antidote(*place.repair(*evaluate, "--max-new-tokens", length, *more))
        assert result.code == 2
        assert all(word in result.errors[0] for word in words)


def test_every_harmful_file_and_every_own_answer_is_told(place: Place, antidote: Command) -> None:
    more = place.write("of somebody/more.jsonl", json.dumps({"prompt": tiny.words(4, 9)}) + "\n")
    found = antidote.done(*place.repair("--harmful", more, "--max-new-tokens", "4", "--json")).json
    calibration = found["repair"]["calibration"]
    assert calibration["references"] == [str(place.harmful), str(more)]
    assert (calibration["own_answers"], calibration["refused_own_answers"]) == (1, 0)
    card = (place.out / "record" / "model_card.md").read_text()
    assert "- harmful data 1: `harmful.jsonl`\n- harmful data 2: `more.jsonl`\n" in card
    assert str(place.root) not in card and "somebody" not in card
    for text in (card, (place.out / "record" / "report.html").read_text()):
        assert "1 harmful rows had no response: the model answered them itself" in text
    counts = antidote.done(*place.repair("--harmful", more, "--max-new-tokens", "4", "--dry-run", "--json")).json
    assert counts["calibration"]["own_answers"] == 1
    kept, again = place.out / "record" / "own_answers.jsonl", place.root / "again"
    found = antidote.done(*place.repair("--harmful", kept, "--json", "--out", again)).json
    assert found["repair"]["calibration"]["own_answers"] == 0
    repaired = [folder / "model" / "adapter_model.safetensors" for folder in (place.out, again)]
    assert repaired[0].read_bytes() == repaired[1].read_bytes()


def test_a_refusal_among_the_own_answers_is_told(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antidote_llm.workflows.harmful_data.refuses", lambda _: True)
    rows = place.write("rows.jsonl", "".join(json.dumps({"prompt": tiny.words(4, n)}) + "\n" for n in (3, 4)))
    result = antidote.done(*replace(place, harmful=rows).repair("--max-new-tokens", "4", "--json"))
    assert result.json["repair"]["calibration"]["refused_own_answers"] == 2
    assert "2 of 2 own answers read as refusals" in result.err
    assert "2 of its answers read as refusals" in (place.out / "record" / "report.html").read_text()


def test_our_own_defect_is_told_apart(place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a test")

    monkeypatch.setattr("antidote_llm.workflows.repair.write_report", broken)
    before = tree(place.root)
    result = antidote(*place.repair())
    assert result.code == 3
    assert result.errors == [result.err.splitlines()[-1]]
    assert result.errors[0].startswith("internal error: ZeroDivisionError: a test")
    assert tree(place.root) == before
