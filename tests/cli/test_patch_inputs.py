"""What a patch is put on: all of it is looked at, what the patch does not change as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from antidote_llm.io.files import sha256_file
from tests.cli.bad_targets import delta, sharded, tuned
from tests.cli.changing import CHANGES, cut, meanwhile, rewritten, said
from tests.cli.command import Command, Place, tree
from tests.patching.making import flipped, older, sealed

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
STEPS = {
    "changing": "antidote_llm.workflows.patch.transform",
    "copying": "antidote_llm.workflows.patch.copy_checkpoint",
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
    meanwhile(monkeypatch, "antidote_llm.repairs.write.copy_checkpoint", lambda: CHANGES[how](changing))
    said(antidote(*arguments), str(changing), "changed while it was read")
    assert not place.out.parent.exists()


def test_what_changes_once_it_is_copied_does_not_lose_the_repair(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, changing = delta(place), tuned(place) / "tokenizer.json"
    copied = sha256_file(changing)
    meanwhile(monkeypatch, "antidote_llm.workflows.repair.compose", lambda: rewritten(changing))
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


KEPT = (FIRST, "config.json", "generation_config.json", "tokenizer.json", "additional_chat_templates/tools.jinja")
DOCUMENTS = ("README.md", "LICENSE", "NOTICE.txt", "custom_generate/README.md")


@pytest.fixture
def whole(place: Place, antidote: Command) -> Path:
    """A sharded fine-tune with documents and templates in folders, of which a repair changed the second shard alone."""
    folder = tuned(place)
    sharded(folder)
    for name in (KEPT[-1], *DOCUMENTS):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("zorbik")
    antidote.done(*delta(place), "--sites", "*.layers.1.*", "--out", place.root / "finished")
    return folder


def sides(place: Place, whole: Path) -> dict[str, Path]:
    return {"apply": whole, "revert": place.root / "finished" / "model"}


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_every_file_that_a_patch_leaves_as_it_is_must_be_the_one_that_it_knows(
    command: str, place: Place, whole: Path, antidote: Command
) -> None:
    folder = sides(place, whole)[command]
    for name in KEPT:
        content = (folder / name).read_bytes()
        flipped(folder / name, -3)
        said(antidote(*patch(place, folder, command)), str(folder / name), "another file than the patched model has")
        (folder / name).unlink()
        assert name in antidote(*patch(place, folder, command)).errors[0]
        (folder / name).write_bytes(content)
        assert not place.out.parent.exists()
    for name in ("chat_template.json", "modeling_zorbik.py", "additional_chat_templates/more.jinja", "merges.txt"):
        (folder / name).write_text("zorbik")
        said(antidote(*patch(place, folder, command)), str(folder / name), "the patched model does not have", "remove")
        (folder / name).unlink()
    # Nothing of it is left, and what is no part of a checkpoint does not count.
    (folder / "optimizer.pt").write_text("zorbik")
    antidote.done(*patch(place, folder, command))


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_documents_may_differ_and_are_named(command: str, place: Place, whole: Path, antidote: Command) -> None:
    folder = sides(place, whole)[command]
    (folder / "README.md").write_text("# mine")
    (folder / "LICENSE").unlink()
    (folder / "COPYING").write_text("mine")
    result = antidote.done(*patch(place, folder, command), "--json")
    remarks = result.json["remarks"]
    assert len(remarks) == 3 and all(f"warning: {remark}" in result.err for remark in remarks)
    for name, problem in {"README.md": "is not what it was", "LICENSE": "is not there", "COPYING": "is not"}.items():
        assert any(f"{folder / name} {problem}" in remark for remark in remarks)
    assert (place.out / "README.md").read_text() == "# mine" and not (place.out / "LICENSE").exists()
    again = antidote.done(*patch(place, folder, command), "--json")
    assert again.json["finished_before"]


@pytest.mark.parametrize("command", ["apply", "revert"])
def test_a_flipped_word_of_the_recipe_is_noticed_by_every_command(
    command: str, place: Place, whole: Path, antidote: Command
) -> None:
    path = place.root / "finished" / "record" / "patch.safetensors"
    content = path.read_bytes()
    assert content.count(b'\\"antidote\\"') == 1
    path.write_bytes(content.replace(b'\\"antidote\\"', b'\\"antidotf\\"'))
    for arguments in (
        ["patch", "show", path],
        ["patch", "diff", path, path],
        patch(place, sides(place, whole)[command], command),
    ):
        said(antidote(*arguments), str(path), "damaged patch", "the sha256 that it holds of itself")


def test_what_is_verified_is_said(place: Place, whole: Path, antidote: Command) -> None:
    number = len(KEPT) + len(DOCUMENTS)
    shown = antidote.done("patch", "show", place.root / "finished", "--json").json
    known = {file["path"]: file["sha256"] for file in shown["unchanged"]}
    assert set(known) >= {*KEPT, *DOCUMENTS} and len(known) >= number
    assert all(known[name] == sha256_file(whole / name) for name in known)
    record = json.loads((place.root / "finished" / "record" / "repair.json").read_text())
    assert (record["patch"]["sha256"], record["patch"]["sha256_unchanged"]) == (shown["sha256"], known)
    said_of_it = antidote.done("patch", "show", place.root / "finished").out
    assert f"unchanged: {len(known)} files" in said_of_it and f"sha256 {shown['sha256']}, verified" in said_of_it
    applied = antidote.done(*patch(place, whole)).out
    assert "verified by sha256: the patch itself, 1 changed and" in applied


def test_a_patch_without_a_model_knows_all_files_too(place: Place, whole: Path, antidote: Command) -> None:
    antidote.done(*delta(place), "--sites", "*.layers.1.*", "--patch-only", "--out", place.root / "alone")
    command = ["patch", "apply", place.root / "alone", "--onto", whole, "--out", place.out]
    flipped(whole / "tokenizer.json", -3)
    said(antidote(*command), "tokenizer.json", "another file than the patched model has")
    flipped(whole / "tokenizer.json", -3)
    antidote.done(*command)
    model = place.root / "finished" / "model"
    names = {path.relative_to(model) for path in model.rglob("*") if path.is_file()}
    assert names == {path.relative_to(place.out) for path in place.out.rglob("*") if path.is_file()} - {
        Path(".antidote.json")
    }
    assert all(sha256_file(place.out / name) == sha256_file(model / name) for name in names)


def test_a_patch_of_the_format_before_says_what_it_cannot_verify(place: Place, whole: Path, antidote: Command) -> None:
    path = older(place.root / "finished" / "record" / "patch.safetensors")
    folder = sides(place, whole)["revert"]
    result = antidote.done(*patch(place, folder, "revert"))
    assert f"{path} is of format 2, which holds no sha256 of itself" in result.err
    assert "not the patch itself, nor any other file" in result.out
    assert "not verified" in antidote.done("patch", "show", path).out
    assert sha256_file(place.out / SECOND) == sha256_file(whole / SECOND)


def test_what_is_left_out_is_named(place: Place, antidote: Command) -> None:
    folder = tuned(place)
    for name in ("optimizer.pt", "checkpoint-7/adapter_config.json", "consolidated.safetensors", "figures/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("zorbik")
    left = ["checkpoint-7/", "consolidated.safetensors", "figures/", "optimizer.pt"]
    repaired = antidote.done(*delta(place))
    assert f"left out of the repaired model, because no class loads it: {', '.join(left)}" in repaired.out
    assert json.loads((place.out / "record" / "repair.json").read_text())["left_out"] == left
    applied = antidote.done("patch", "apply", place.out, "--onto", folder, "--out", place.root / "applied", "--json")
    assert applied.json["left_out"] == left
