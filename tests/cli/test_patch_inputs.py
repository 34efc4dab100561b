"""What a patch is put on: all of it is looked at, what the patch does not change as well."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from antidote_llm.artifacts import sha256_file
from tests.cli.bad_targets import delta, sharded, tuned
from tests.cli.changing import CHANGES, cut, meanwhile, rewritten, said
from tests.cli.command import Command, Place, tree
from tests.patching.making import flipped, sealed

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
STEPS = {
    "changing": "antidote_llm.cli.patch.transform",
    "copying": "antidote_llm.cli.patch.copy_checkpoint",
    "placing": "antidote_llm.patching.shipping.clone_file",
}


@pytest.fixture
def onto(place: Place, antidote: Command) -> Path:
    """A sharded fine-tune, of which a repair at ``finished`` changed the second shard alone."""
    folder = tuned(place)
    sharded(folder)
    antidote.done(*delta(place), "--sites", "*.layers.1.*", "--out", place.root / "finished")
    return folder


def patch(place: Place, onto: Path, command: str = "apply") -> list[object]:
    return ["patch", command, place.root / "finished", "--onto", onto, "--out", place.out]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", [FIRST, SECOND, "config.json", "model.safetensors.index.json"])
def test_an_input_that_changes_while_it_is_read_is_named(
    name: str, step: str, how: str, place: Place, onto: Path, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(place.root)
    meanwhile(monkeypatch, STEPS[step], lambda: CHANGES[how](onto / name))
    result = antidote(*patch(place, onto))
    said(result, onto.name)
    assert any(found in result.err for found in (name, FIRST, SECOND))
    after = tree(place.root)
    for path in (f"{onto.name}/{name}", onto.name):
        after.pop(path, None)
        del before[path]
    assert after == before


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_what_ships_with_a_repair_may_not_change_meanwhile(
    name: str, how: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = delta(place)
    changing = tuned(place) / name
    meanwhile(monkeypatch, "antidote_llm.repair.writing.copy_checkpoint", lambda: CHANGES[how](changing))
    said(antidote(*arguments), str(changing), "changed while it was read")
    assert not place.out.parent.exists()


def test_what_changes_once_it_is_copied_does_not_lose_the_repair(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, changing = delta(place), tuned(place) / "tokenizer.json"
    copied = sha256_file(changing)
    meanwhile(monkeypatch, "antidote_llm.cli.repair_job.compose", lambda: rewritten(changing))
    antidote.done(*arguments)
    assert sha256_file(place.out / "model" / changing.name) == copied != sha256_file(changing)


def test_a_truncated_shard_that_the_patch_does_not_change_is_named(place: Place, onto: Path, antidote: Command) -> None:
    cut(onto / FIRST)
    said(antidote(*patch(place, onto)), str(onto / FIRST), "truncated")
    assert not place.out.parent.exists()


@pytest.mark.parametrize("name", [FIRST, SECOND, "config.json", "tokenizer.json"])
def test_a_finished_result_that_lacks_a_file_is_named(name: str, place: Place, onto: Path, antidote: Command) -> None:
    antidote.done(*patch(place, onto))
    again = antidote.done(*patch(place, onto), "--json")
    assert again.json["finished_before"] and "finished already" in again.err
    (place.out / name).unlink()
    said(antidote(*patch(place, onto)), "has been changed since it was finished", name)


def test_a_finished_result_is_not_that_of_another_input(place: Place, onto: Path, antidote: Command) -> None:
    antidote.done(*patch(place, onto))
    other = Path(shutil.copytree(onto, place.root / "other"))
    antidote.done(*patch(place, other))
    (other / "README.md").write_text("# mine")
    antidote.done(*patch(place, other))
    shutil.copytree(place.root / "finished" / "model", place.root / "repaired")
    again = ["patch", "revert", place.root / "finished", "--onto", place.root / "repaired", "--out", place.out]
    said(antidote(*again), "result of other inputs", "--out")


@pytest.mark.parametrize("hash_too", [False, True])
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_patch_whose_flips_are_not_what_they_were_is_named(
    command: str, hash_too: bool, place: Place, onto: Path, antidote: Command
) -> None:
    folder = onto if command == "apply" else place.root / "finished" / "model"
    path = place.root / "finished" / "record" / "patch.safetensors"
    flipped(path, path.stat().st_size - 1)
    if hash_too:
        sealed(path)
    digest, before = sha256_file(path), tree(folder)
    problem = SECOND if hash_too else "the sha256 that it holds of itself"
    said(antidote(*patch(place, folder, command)), str(path), "a damaged patch", problem)
    assert not place.out.parent.exists()
    assert (sha256_file(path), tree(folder)) == (digest, before)
