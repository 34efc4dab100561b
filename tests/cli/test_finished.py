"""A result that was changed after it was finished is not taken for finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from antidote_llm.cli.main import run
from antidote_llm.patching.shipping import shipped_files
from tests import tiny
from tests.cli.command import Command, Place, edit_json, tree
from tests.fine_tunes import write_fine_tune

ADAPTER_FILE = "adapter_model.safetensors"


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Place], object]] = {
    "unrepaired weights": lambda place: shutil.copy(place.adapter / ADAPTER_FILE, place.out / "model"),
    "one bit of the weights": lambda place: flip_last_byte(place.out / "model" / ADAPTER_FILE),
    "no model": lambda place: shutil.rmtree(place.out / "model"),
    "no weights": lambda place: (place.out / "model" / ADAPTER_FILE).unlink(),
    "more weights": lambda place: shutil.copy(place.base / "model.safetensors", place.out / "model"),
    "another configuration": lambda place: edit_json(place.out / "model" / "adapter_config.json", lora_alpha=1),
    "no record of the repair": lambda place: (place.out / "record" / "repair.json").unlink(),
    "half a record": lambda place: edit_json(place.out / "record" / "repair.json", patch=None),
    "no patch": lambda place: (place.out / "record" / "patch.safetensors").unlink(),
    "half a patch": lambda place: (place.out / "record" / "patch.safetensors").write_bytes(b"half"),
    "one bit of the patch": lambda place: flip_last_byte(place.out / "record" / "patch.safetensors"),
    "no report": lambda place: (place.out / "record" / "report.html").unlink(),
    "no model card": lambda place: (place.out / "record" / "model_card.md").unlink(),
    "no evaluation": lambda place: shutil.rmtree(place.out / "record" / "after"),
    "no aligned evaluation": lambda place: shutil.rmtree(place.out / "record" / "aligned"),
    "other answers": lambda place: flip_last_byte(place.out / "record" / "before" / "answers.parquet"),
    "no own answers": lambda place: (place.out / "record" / "own_answers.jsonl").unlink(),
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Place]:
    """A repair of an adapter with evaluations and own answers, done once. Copy it before changing anything."""
    root = tmp_path_factory.mktemp("finished")
    base = tiny.write_model(root / "base")
    adapter = tiny.write_adapter(root / "adapter", base)
    rows = tiny.write_rows(root / "harmful.jsonl", count=6)
    place = Place(root, base, adapter, rows, root / "out")
    with rows.open("a") as stream:
        stream.write(json.dumps({"prompt": tiny.words(9, 77)}) + "\n")
    asked = tiny.write_rows(root / "asked.jsonl", count=3, seed=5)
    given = place.repair("--evaluate", asked, "--max-new-tokens", "4", "--no-cache")
    assert run([str(argument) for argument in given]) == 0
    return given, place


@pytest.fixture
def done(arguments: tuple[list[object], Place], tmp_path: Path) -> tuple[list[object], Place]:
    """The same command, and a copy of its result that a test may change."""
    given, place = arguments
    copy = Place(place.root, place.base, place.adapter, place.harmful, tmp_path / "out")
    shutil.copytree(place.out, copy.out)
    return [copy.out if argument == place.out else argument for argument in given], copy


def test_the_result_as_it_was_is_finished(done: tuple[list[object], Place], antidote: Command) -> None:
    given, _ = done
    assert "finished already" in antidote.done(*given).err


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_result_is_refused(change: str, done: tuple[list[object], Place], antidote: Command) -> None:
    given, place = done
    CHANGES[change](place)
    before = tree(place.out)
    result = antidote(*given)
    assert (result.code, result.out) == (2, "")
    (line,) = result.errors
    assert f"{place.out} has been changed since it was finished" in line and "choose another --out" in line
    assert tree(place.out) == before


def test_a_model_card_of_ones_own_is_no_change(done: tuple[list[object], Place], antidote: Command) -> None:
    given, place = done
    (place.out / "model" / "README.md").write_text("# mine")
    assert "finished already" in antidote.done(*given).err


def test_shards_that_a_repair_left_alone_are_looked_at_too(place: Place, antidote: Command) -> None:
    tuned = write_fine_tune(place.root / "tuned", place.base)
    given = ["repair", tuned, "--aligned", place.base, "--method", "magnitude", "--out", place.out]
    antidote.done(*given)
    assert "finished already" in antidote.done(*given).err
    shutil.copy(tuned / "model.safetensors", place.out / "model")
    assert "model/model.safetensors" in antidote(*given).errors[0]
    shutil.rmtree(place.out)
    antidote.done(*given, "--alpha", "0")
    flip_last_byte(place.out / "model" / "model.safetensors")
    assert "model/model.safetensors" in antidote(*given, "--alpha", "0").errors[0]


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "modeling_zorbik.py"])
@pytest.mark.parametrize("command", ["repair", "evaluate"])
def test_whatever_shapes_answers_makes_another_result(command: str, name: str, place: Place, antidote: Command) -> None:
    given = place.repair()
    if command == "evaluate":
        given = ["evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", "2", "--out", place.out]
    antidote.done(*given)
    path = place.base / name
    if name.endswith(".json"):
        # A token that is in no answer: nothing but the file is another.
        edit_json(path, **{"pad_token_id": 1} if name.startswith("generation") else {"model_max_length": 77})
    else:
        path.write_text("# a zorbik")
    assert "other inputs or settings" in antidote(*given).err


def test_a_tokenizer_from_elsewhere_counts(place: Place, antidote: Command) -> None:
    tokenizer = place.root / "tokenizer"
    tokenizer.mkdir()
    for path in shipped_files(place.base):
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, tokenizer)
    given = place.repair("--tokenizer", tokenizer)
    antidote.done(*given)
    edit_json(tokenizer / "tokenizer_config.json", model_max_length=77)
    assert "other inputs or settings" in antidote(*given).err
