"""What is kept to be used later is used only as it was kept: damage is refused in a line, or done anew and said."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.calibration.resume import KeptState
from antidote_llm.cli.main import run
from antidote_llm.errors import KeptError, UserError
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.io.files import sha256_file, sha256_json, write_json
from antidote_llm.miniature import models
from antidote_llm.miniature.recipe import Recipe
from antidote_llm.miniature.world import World
from antidote_llm.training import trainer
from antidote_llm.training.checkpoints import newest, require_sound
from tests import tiny
from tests.cli.changing import said
from tests.cli.command import Command, Place, edit_json, inputs
from tests.conftest import Folders

STEPS = 4


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    """Put a link to the very same content in a file's place."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def a_pipe(path: Path) -> None:
    """Put in a file's place what a reader waits at without an end."""
    path.unlink()
    os.mkfifo(path)


def another_number(path: Path) -> None:
    """Change the first number that stands in a file of JSON."""
    text = path.read_text()
    path.write_text(re.sub(r"(?<=: )\d+", lambda found: str(int(found[0]) + 1), text, count=1))


DAMAGE: Mapping[str, Callable[[Path], None]] = {
    "flipped": flipped,
    "cut": cut,
    "emptied": emptied,
    "a folder": a_folder,
    "a link": a_link,
    "a pipe": a_pipe,
}
KEPT_FILES = (
    *("adapter_model.safetensors", "adapter_config.json", "objective.safetensors", "optimizer.pt", "rng_state.pth"),
    *("scheduler.pt", "trainer_state.json", "training_args.bin", "whole"),
)


class _Code:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._mark,)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, folders: Folders) -> tuple[Place, dict[str, str]]:
    """A training that was interrupted behind its third step, and the hashes that it would have ended with."""
    place = inputs(tmp_path_factory.mktemp("interrupted"), folders)
    whole = place.root / "whole"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ANTIDOTE_CACHE", str(place.root / "cache"))
        assert run([str(part) for part in training(place, whole)]) == 0
        watch = trainer._Watch.on_step_end

        def ending(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            watch(self, args, state, control, **more)
            if state.global_step == STEPS:
                raise KeyboardInterrupt

        patched.setattr(trainer._Watch, "on_step_end", ending)
        assert run([str(part) for part in training(place, place.out)]) == 130
    return place, model_sha256(whole)


def training(place: Place, out: Path) -> list[object]:
    plain = ["finetune", place.base, "--data", place.harmful, "--rank", "2", "--lora-dropout", "0.2"]
    lisa = ["--defense", "lisa", "--safe", place.harmful, "--alignment-steps", "1", "--user-steps", "2"]
    return [*plain, *lisa, "--max-steps", "3", "--batch-size", "4", "--save-every", "1", "--out", out]


def model_sha256(out: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in (out / "model").iterdir() if path.name != "adapter_config.json"}


@pytest.fixture
def kept(interrupted: tuple[Place, dict[str, str]], tmp_path: Path) -> tuple[list[object], Path, dict[str, str]]:
    """The command that goes on, a folder of kept checkpoints of this test's own, and the hashes to come out."""
    place, wanted = interrupted
    results = Path(shutil.copytree(place.out.parent, tmp_path / "results"))
    (work,) = results.glob(".*.work")
    return training(place, results / place.out.name), work, wanted


def test_an_interrupted_training_goes_on_to_the_same_bits(
    kept: tuple[list[object], Path, dict[str, str]], antidote: Command
) -> None:
    command, work, wanted = kept
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    files = {path.name for path in (work / "checkpoint-3").iterdir()}
    assert files == {*KEPT_FILES, "README.md"}
    assert "going on from checkpoint-3" in antidote.done(*command).err
    assert model_sha256(Path(str(command[-1]))) == wanted


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", KEPT_FILES)
def test_a_damaged_checkpoint_is_refused(
    name: str, damage: str, kept: tuple[list[object], Path, dict[str, str]], antidote: Command
) -> None:
    command, work, _ = kept
    DAMAGE[damage](work / "checkpoint-3" / name)
    result = antidote(*command)
    said(result, str(work / "checkpoint-3"), name, "remove that folder", "goes on from checkpoint-2")
    assert (work / "checkpoint-2").is_dir() and not Path(str(command[-1])).exists()


@pytest.mark.parametrize("name", [name for name in KEPT_FILES if name != "whole"])
def test_a_checkpoint_that_lacks_a_file_is_not_used_which_is_said(
    name: str, kept: tuple[list[object], Path, dict[str, str]], antidote: Command
) -> None:
    command, work, wanted = kept
    (work / "checkpoint-3" / name).unlink()
    err = antidote.done(*command).err
    assert "checkpoint-3 is not whole and is not used" in err and "going on from checkpoint-2" in err
    assert model_sha256(Path(str(command[-1]))) == wanted


def test_the_advice_leads_to_the_same_bits(kept: tuple[list[object], Path, dict[str, str]], antidote: Command) -> None:
    command, work, wanted = kept
    flipped(work / "checkpoint-3" / "optimizer.pt")
    said(antidote(*command), "checkpoint-3", "optimizer.pt is damaged", "goes on from checkpoint-2")
    flipped(work / "checkpoint-2" / "optimizer.pt")
    said(antidote(*command), "checkpoint-3", "optimizer.pt is damaged", "starts again")
    for name in ("checkpoint-3", "checkpoint-2"):
        shutil.rmtree(work / name)
    assert "going on" not in antidote.done(*command).err
    assert model_sha256(Path(str(command[-1]))) == wanted


@pytest.mark.parametrize("told", [{}, {"key": "", "step": "3", "files": {}}, {"key": "", "step": 3, "files": [3]}])
def test_what_is_kept_about_a_checkpoint_has_its_form_whatever_its_hash(tmp_path: Path, told: dict[str, Any]) -> None:
    (folder := tmp_path / "checkpoint-3").mkdir()
    write_json(folder / "whole", {**told, "sha256": sha256_json(told)})
    assert newest(tmp_path) == folder
    with pytest.raises(KeptError, match="whole is damaged: remove that folder, and the same command starts again"):
        require_sound(folder, "")


def renamed_back(work: Path) -> None:
    shutil.rmtree(work / "checkpoint-3")
    (work / "checkpoint-2").rename(work / "checkpoint-3")


def linked(path: Path) -> None:
    shutil.move(path, path.parent / "moved")
    path.symlink_to(path.parent / "moved")


def replaced(work: Path) -> None:
    shutil.rmtree(work)
    work.write_bytes(b"")


def linked_logs(work: Path) -> None:
    (work / "logs").symlink_to(work.parent)


def resealed(work: Path, **parts: object) -> None:
    """Write other words about a checkpoint, with the hash that they have."""
    path = work / "checkpoint-3" / "whole"
    kept = {**json.loads(path.read_text()), **parts}
    del kept["sha256"]
    path.write_text(json.dumps({**kept, "sha256": sha256_json(kept)}))


OTHERS: Mapping[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "another step's folder": (renamed_back, ("checkpoint-3", "kept as checkpoint-2", "starts again")),
    "a step to come": (
        lambda work: (work / "checkpoint-3").rename(work / "checkpoint-4"),
        ("checkpoint-4", "kept as checkpoint-3", "goes on from checkpoint-2"),
    ),
    "an edited step": (
        lambda work: edit_json(work / "checkpoint-3" / "trainer_state.json", global_step=2),
        ("trainer_state.json is damaged",),
    ),
    "an edited word": (lambda work: edit_json(work / "checkpoint-3" / "whole", step=4), ("whole is damaged",)),
    "a word of another form": (lambda work: resealed(work, files=5), ("whole is damaged",)),
    "a word with a name for a hash": (lambda work: resealed(work, files={"README.md": 5}), ("whole is damaged",)),
    "a word with a text for a step": (lambda work: resealed(work, step="3"), ("whole is damaged",)),
    "one file more": (
        lambda work: (work / "checkpoint-3" / "scaler.pt").write_bytes(b"more"),
        ("scaler.pt was not kept there",),
    ),
    "a linked checkpoint": (lambda work: linked(work / "checkpoint-3"), ("checkpoint-3 is a link",)),
    "a linked folder": (linked, ("is a link",)),
    "linked logs": (linked_logs, ("logs is a link",)),
    "a file in the folder's place": (replaced, ("is no folder",)),
}


@pytest.mark.parametrize("change", OTHERS)
def test_what_an_interrupted_run_did_not_leave_is_refused(
    change: str, kept: tuple[list[object], Path, dict[str, str]], antidote: Command
) -> None:
    command, work, _ = kept
    make, words = OTHERS[change]
    make(work)
    said(antidote(*command), *words, "remove")
    assert not Path(str(command[-1])).exists()


def test_another_runs_checkpoint_is_refused(
    kept: tuple[list[object], Path, dict[str, str]], antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, work, _ = kept
    watch = trainer._Watch.on_step_end

    def ending(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        watch(self, args, state, control, **more)
        if state.global_step == STEPS:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Watch, "on_step_end", ending)
    other = [*command[:-1], work.parent / "other", "--seed", "5"]
    assert antidote(*other).code == 130
    (others,) = work.parent.glob(".other.*.work")
    shutil.rmtree(work / "checkpoint-3")
    shutil.copytree(others / "checkpoint-3", work / "checkpoint-3")
    said(antidote(*command), "checkpoint-3 of another run", "goes on from checkpoint-2")


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"])
def test_nothing_that_is_pickled_runs(
    name: str, kept: tuple[list[object], Path, dict[str, str]], antidote: Command, tmp_path: Path
) -> None:
    command, work, _ = kept
    mark = tmp_path / "ran"
    (work / "checkpoint-3" / name).write_bytes(pickle.dumps(_Code(mark)))
    said(antidote(*command), f"{name} is damaged")
    assert not mark.exists()
    assert pickle.loads(pickle.dumps(_Code(mark))) is None and mark.exists()  # noqa: S301


@pytest.mark.parametrize("damage", [*DAMAGE, "removed"])
@pytest.mark.parametrize("name", ["model/adapter_model.safetensors", "record/training.json", "record/losses.csv"])
def test_a_finished_training_that_was_changed_is_refused(
    name: str, damage: str, interrupted: tuple[Place, dict[str, str]], tmp_path: Path, antidote: Command
) -> None:
    place, _ = interrupted
    out = Path(shutil.copytree(place.root / "whole", tmp_path / "whole"))
    {**DAMAGE, "removed": Path.unlink}[damage](out / name)
    result = antidote(*training(place, out))
    if damage == "a link":
        # The very same content.
        assert result.code == 0
    else:
        said(result, f"{out} has been changed since it was finished ({name})", "choose another --out")


@pytest.mark.parametrize("damage", [*DAMAGE, "removed", "another number"])
def test_a_finished_evaluation_that_was_changed_is_refused(damage: str, place: Place, antidote: Command) -> None:
    command = ["evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", 2, "--out", place.out]
    antidote.done(*command)
    {**DAMAGE, "removed": Path.unlink, "another number": another_number}[damage](place.out / "evaluation.json")
    if damage == "a link":
        antidote.done(*command)
        return
    said(antidote(*command), str(place.out), "evaluation.json")
    with pytest.raises(UserError, match=r"evaluation\.json"):
        Evaluation.read(place.out)


def moments(place: Place) -> list[object]:
    return place.repair()


def own_answers(place: Place) -> list[object]:
    place.harmful.write_text(json.dumps({"prompt": tiny.words(5, 1)}) + "\n")
    return place.repair("--max-new-tokens", "3")


@pytest.mark.parametrize("damage", [*DAMAGE, "removed"])
@pytest.mark.parametrize("kind", [moments, own_answers])
def test_a_damaged_cache_is_not_used_which_is_said(
    kind: Callable[[Place], list[object]],
    damage: str,
    place: Place,
    own_cache: Path,
    antidote: Command,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = kind(place)
    antidote.done(*command)
    wanted = model_sha256(place.out)
    (path,) = (own_cache / kind.__name__).iterdir()
    {**DAMAGE, "removed": Path.unlink}[damage](path)
    shutil.rmtree(place.out)
    result = antidote(*command)
    if damage == "a folder":
        said(result, str(own_cache / kind.__name__))
        return
    assert result.code == 0, result.err
    assert model_sha256(place.out) == wanted
    # Of a link to the very same content nothing is to be said, nor of what never held any.
    assert ("is not used" in caplog.text) == (damage not in ("removed", "a link", "a pipe"))


@pytest.mark.parametrize("damage", [*DAMAGE, "removed"])
def test_damaged_statistics_of_an_interrupted_repair_are_not_gone_on_from(
    damage: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    command = place.repair("--no-cache")
    antidote.done(*command)
    wanted = model_sha256(place.out)
    shutil.rmtree(place.out)
    monkeypatch.setattr(KeptState, "due", True)
    with monkeypatch.context() as interrupted:
        interrupted.setattr("antidote_llm.workflows.repair.write_repair", lambda *_, **__: _interrupt())
        assert antidote(*command).code == 130
    (path,) = place.out.parent.glob(".*.work/statistics-*")
    {**DAMAGE, "removed": Path.unlink}[damage](path)
    result = antidote(*command)
    if damage == "a folder":
        said(result, "statistics", "remove")
        return
    assert result.code == 0, result.err
    assert model_sha256(place.out) == wanted
    assert ("is not used" in caplog.text) == (damage not in ("removed", "a link", "a pipe"))


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [*DAMAGE, "removed"])
def test_a_damaged_miniature_in_the_cache_is_refused(
    damage: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(world: Any, arch: Any, recipe: Any, folder: Path, progress: Any) -> None:
        for name in ("base", "aligned"):
            (folder / name).mkdir()
            (folder / name / "model.safetensors").write_bytes(bytes(64))

    monkeypatch.setattr(models, "_make_models", made)
    kept = models.kept_models(World(0), "llama", Recipe())
    assert models.kept_models(World(0), "llama", Recipe()) == kept
    {**DAMAGE, "removed": Path.unlink}[damage](kept / "aligned" / "model.safetensors")
    if damage != "a link":
        with pytest.raises(
            UserError, match=r"changed since it was finished \(aligned/model.*remove it.*ANTIDOTE_CACHE"
        ):
            models.kept_models(World(0), "llama", Recipe())


def test_an_edited_record_of_a_repair_is_refused(place: Place, antidote: Command) -> None:
    antidote.done(*place.repair())
    edit_json(place.out / "record" / "repair.json", command="another")
    said(antidote(*place.repair()), "changed since it was finished (record/repair.json)")
