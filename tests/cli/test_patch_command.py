"""``antidote patch``: every repair comes off again, to the very bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from antidote_llm.io.files import sha256_file
from tests import tiny
from tests.cli.command import Command, Place, tree
from tests.fine_tunes import write_fine_tune
from tests.patching.making import sealed

ADAPTER_FILE = "adapter_model.safetensors"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RECIPES: dict[str, tuple[str, ...]] = {
    "antidote": (),
    "antidote halved": ("--strength", "0.5"),
    "antidote all": ("--alpha", "1"),
    "antidote global": ("--scope", "global", "--preset", "official-code"),
    "random": ("--method", "random"),
    "random at equal norm": ("--method", "random", "--match", "update-norm"),
    "magnitude": ("--method", "magnitude", "--scope", "layer"),
    "interpolate": ("--method", "interpolate"),
    "interpolate half": ("--method", "interpolate", "--keep", "0.5"),
}


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("dtype")
    base = tiny.write_model(root / "base", dtype=request.param)
    return base, tiny.write_adapter(root / "adapter", base, dtype=request.param)


@pytest.mark.parametrize("recipe", RECIPES)
def test_apply_and_revert_give_the_same_bytes(
    checkpoints: tuple[Path, Path], place: Place, antidote: Command, recipe: str
) -> None:
    base, adapter = checkpoints
    inputs = ["--harmful", place.harmful, "--evaluate", "none", "--out", place.out]
    antidote.done("repair", base, "--adapter", adapter, *inputs, *RECIPES[recipe])
    original, repaired = sha256_file(adapter / ADAPTER_FILE), sha256_file(place.out / "model" / ADAPTER_FILE)
    assert original != repaired

    antidote.done("patch", "apply", place.out, "--onto", adapter, "--out", "applied")
    antidote.done("patch", "revert", place.out, "--onto", place.out / "model", "--out", "reverted")
    for path in adapter.iterdir():
        wanted = repaired if path.name == ADAPTER_FILE else sha256_file(path)
        assert sha256_file(Path("applied") / path.name) == wanted
        assert sha256_file(Path("reverted") / path.name) == sha256_file(path)


def test_show_names_what_changes(place: Place, antidote: Command) -> None:
    repaired = antidote.done(*place.repair("--json")).json["repair"]
    shown = antidote.done("patch", "show", place.out, "--json").json
    assert shown["recipe"]["method"] == "antidote"
    assert sum(tensor["changed"] for tensor in shown["tensors"]) == repaired["totals"]["changed"]
    assert shown["files"][0]["sha256_before"] == sha256_file(place.adapter / ADAPTER_FILE)
    patch = place.out / "record" / "patch.safetensors"
    by_layer = antidote.done("patch", "show", patch).out
    assert shown["files"][0]["sha256_after"] in by_layer and "q_proj" not in by_layer
    assert f"{repaired['totals']['changed']:,}" in by_layer
    assert "q_proj" in antidote.done("patch", "show", patch, "--tensors").out


def test_show_of_a_repair_that_changed_nothing(place: Place, antidote: Command) -> None:
    antidote.done(*place.repair("--alpha", "0"))
    assert antidote.done("patch", "show", place.out, "--json").json["tensors"] == []
    antidote.done("patch", "revert", place.out, "--onto", place.out / "model", "--out", "reverted")
    assert sha256_file(Path("reverted") / ADAPTER_FILE) == sha256_file(place.adapter / ADAPTER_FILE)


def test_diff_counts_what_two_repairs_share(place: Place, antidote: Command) -> None:
    totals = {}
    for name, more in {"one": ("--alpha", "0.1"), "two": ("--alpha", "0.3")}.items():
        result = antidote.done(*place.repair("--json", *more), "--out", name)
        totals[name] = result.json["repair"]["totals"]["changed"]
    found = antidote.done("patch", "diff", "one", "two", "--json").json
    # A smaller alpha picks a part of what a larger one picks.
    assert (found["first_only"], found["both"]) == (0, totals["one"])
    assert found["second_only"] == totals["two"] - totals["one"]
    assert found["jaccard"] == pytest.approx(totals["one"] / totals["two"])
    assert antidote.done("patch", "diff", "one", "one", "--json").json["jaccard"] == 1
    assert "Jaccard" in antidote.done("patch", "diff", "one", "two").out


def tuned(place: Place) -> Path:
    return write_fine_tune(place.root / "tuned", place.base, max_shard_size="20KB")


def delta(place: Place, tuned: Path, *more: object) -> list[object]:
    inputs = ["--harmful", place.harmful, "--evaluate", "none", "--out", place.out]
    return ["repair", tuned, "--aligned", place.base, *inputs, *more]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_delta_goes_on_and_comes_off(place: Place, antidote: Command, recipe: str) -> None:
    original = tuned(place)
    antidote.done(*delta(place, original, *RECIPES[recipe]))
    antidote.done("patch", "apply", place.out, "--onto", original, "--out", "applied")
    antidote.done("patch", "revert", place.out, "--onto", place.out / "model", "--out", "reverted")
    names = sorted(path.name for path in original.iterdir())
    assert names == sorted(path.name for path in (place.out / "model").iterdir())
    for name in names:
        assert sha256_file(Path("applied") / name) == sha256_file(place.out / "model" / name)
        assert sha256_file(Path("reverted") / name) == sha256_file(original / name)
    assert {path.name for path in Path("reverted").iterdir()} - {".antidote.json"} == set(names)


def test_deltas_of_two_alphas_share_values(place: Place, antidote: Command) -> None:
    original, totals = tuned(place), {}
    for name, more in {"one": ("--alpha", "0.1"), "two": ("--alpha", "0.3")}.items():
        result = antidote.done(*delta(place, original, "--json", *more), "--out", name)
        totals[name] = result.json["repair"]["totals"]["changed"]
    found = antidote.done("patch", "diff", "one", "two", "--json").json
    # What both choose goes to the same place, the aligned value.
    assert found["both"] == found["equal"] == totals["one"] > 0
    assert (found["first_only"], found["second_only"]) == (0, totals["two"] - totals["one"])
    assert sum(tensor["both"] for tensor in found["tensors"]) == found["both"]

    antidote.done(*delta(place, original, "--alpha", "0.1", "--strength", "0.5"), "--out", "half")
    found = antidote.done("patch", "diff", "one", "half", "--json").json
    assert found["both"] == totals["one"] and found["equal"] == 0


def test_diff_of_an_adapter_and_a_delta_is_refused(place: Place, antidote: Command) -> None:
    antidote.done(*place.repair(), "--out", "adapter-repaired")
    antidote.done(*delta(place, tuned(place)), "--out", "delta-repaired")
    result = antidote("patch", "diff", "adapter-repaired", "delta-repaired")
    assert result.code == 2 and "change no file of the same name" in result.err


@pytest.mark.parametrize("links", [False, True])
def test_what_does_not_change_may_be_linked(place: Place, antidote: Command, links: bool) -> None:
    original = tuned(place)
    for name in ("consolidated.safetensors", "optimizer.safetensors", "optimizer.pt", "pytorch_model.bin"):
        (original / name).write_bytes(b"\0" * 10)
    more = ["--hard-links"] if links else []
    before = tree(original)
    antidote.done(*delta(place, original, "--sites", "*.layers.0.*", *more))
    antidote.done("patch", "revert", place.out, "--onto", place.out / "model", "--out", "reverted", *more)
    assert tree(original) == before
    changed = {file["path"] for file in antidote.done("patch", "show", place.out, "--json").json["files"]}
    shards = {path.name for path in original.glob("model-*.safetensors")}
    assert changed and changed < shards
    for name in shards:
        shared = {(folder / name).stat().st_ino for folder in (original, place.out / "model", Path("reverted"))}
        assert len(shared) == (1 if links and name not in changed else 3)
        assert (Path("reverted") / name).read_bytes() == (original / name).read_bytes()
    left = {path.name for folder in (place.out / "model", Path("reverted")) for path in folder.iterdir()}
    assert not left & {"consolidated.safetensors", "optimizer.safetensors", "optimizer.pt", "pytorch_model.bin"}


def test_onto_is_not_modified_and_a_second_time_changes_nothing(place: Place, antidote: Command) -> None:
    antidote.done(*place.repair())
    command = ("patch", "apply", place.out, "--onto", place.adapter, "--out", "applied")
    before = tree(place.adapter)
    antidote.done(*command)
    assert tree(place.adapter) == before
    written = tree(Path("applied"))
    antidote.done(*command)
    assert tree(Path("applied")) == written


def test_a_patch_that_lies_leaves_nothing(place: Place, antidote: Command) -> None:
    antidote.done(*place.repair())
    patch = Path(shutil.copy(place.out / "record" / "patch.safetensors", place.root / "lying.safetensors"))
    promised = sha256_file(place.out / "model" / ADAPTER_FILE).encode()
    patch.write_bytes(patch.read_bytes().replace(promised, b"0" * 64))
    sealed(patch)
    before = tree(place.root)
    result = antidote("patch", "apply", patch, "--onto", place.adapter, "--out", "applied")
    assert result.code == 2 and "damaged patch" in result.err
    assert tree(place.root) == before


@pytest.mark.parametrize("damage", ["replaced", "removed"])
def test_a_finished_revert_that_was_changed_is_named(place: Place, antidote: Command, damage: str) -> None:
    antidote.done(*place.repair())
    again = ["patch", "revert", place.out, "--onto", place.out / "model", "--out", place.root / "back"]
    antidote.done(*again)
    antidote.done(*again)
    weights = place.root / "back" / ADAPTER_FILE
    if damage == "removed":
        weights.unlink()
    else:
        shutil.copy(place.out / "model" / ADAPTER_FILE, weights)
    result = antidote(*again)
    assert result.code == 2
    (line,) = result.errors
    assert "back has been changed since it was finished" in line and ADAPTER_FILE in line
