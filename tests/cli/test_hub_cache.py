"""Hub ids: what lies in the Hub's cache is opened, repaired and patched as a folder is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.io.files import sha256_file
from tests.cli.command import Place, edit_json, tree
from tests.fine_tunes import tensors_of, write_fine_tune

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADAPTER_FILE = "adapter_model.safetensors"
Run = Callable[..., subprocess.CompletedProcess[str]]


def cached(hub: Path, name: str, folder: Path) -> Path:
    """Lay a folder into a Hub cache: blobs by hash, and a snapshot of links to them."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for made in (repository / "blobs", repository / "refs", snapshot):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in folder.iterdir():
        blob = repository / "blobs" / sha256_file(path)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.fixture
def hub(place: Place) -> Path:
    hub = place.root / "hub"
    edit_json(place.adapter / "adapter_config.json", base_model_name_or_path="org/base")
    cached(hub, "org/base", place.base)
    cached(hub, "org/adapter", place.adapter)
    return hub


@pytest.fixture
def antidote(hub: Path, place: Place) -> Run:
    """The command in a process of its own: where the Hub's cache lies is read when the library is imported."""
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "antidote_llm", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=place.root, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done

    return run


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def test_an_adapter_on_the_hub_is_repaired_and_patched(place: Place, hub: Path, antidote: Run) -> None:
    before = tree(hub)
    given = ["--harmful", place.harmful, "--evaluate", "none", "--json"]
    found = answer(antidote("repair", "org/base", "--adapter", "org/adapter", *given, "--out", place.out))
    assert found["repair"]["base"]["reference"] == "org/base"
    assert found["repair"]["adapter"]["sha256"][ADAPTER_FILE] == sha256_file(place.adapter / ADAPTER_FILE)
    assert not any(path.is_symlink() for path in place.out.rglob("*"))

    antidote("patch", "apply", place.out, "--onto", "org/adapter", "--out", "applied")
    repaired = sha256_file(place.out / "model" / ADAPTER_FILE)
    assert sha256_file(place.root / "applied" / ADAPTER_FILE) == repaired != sha256_file(place.adapter / ADAPTER_FILE)
    assert not any(path.is_symlink() for path in (place.root / "applied").iterdir())
    assert tree(hub) == before

    # The adapter alone names its base by its id.
    antidote("repair", "org/adapter", *given, "--out", "alone")
    assert sha256_file(place.root / "alone" / "model" / ADAPTER_FILE) == repaired


def test_a_fine_tune_is_repaired_towards_an_aligned_model_on_the_hub(place: Place, hub: Path, antidote: Run) -> None:
    tuned = write_fine_tune(place.root / "tuned", place.base, max_shard_size="20KB")
    snapshot = cached(hub, "org/tuned", tuned)
    before = tree(hub)
    given = ["--aligned", "org/base", "--harmful", place.harmful, "--max-new-tokens", "3", "--alpha", "1"]
    given += ["--sites", "*.layers.0.*"]
    found = answer(antidote("repair", "org/tuned", *given, "--hard-links", "--out", place.out, "--json"))
    assert found["repair"]["aligned"]["reference"] == "org/base"
    assert found["evaluations"].keys() == {"aligned", "before", "after"}
    model, wanted = tensors_of(place.out / "model"), tensors_of(place.base)
    assert all(model[key].equal(wanted[key]) == ("layers.0." in key) for key in wanted if "proj" in key)

    kept = {path.name for path in tuned.glob("*.safetensors")} - set(found["repair"]["patch"]["sha256_before"])
    assert kept
    for name in kept:
        # Linked to the blob itself, not to the link in the snapshot.
        assert (place.out / "model" / name).stat().st_ino == (snapshot / name).resolve().stat().st_ino
    assert tree(hub) == before


def test_what_the_hub_did_not_give_is_named(place: Place, antidote: Run) -> None:
    done = antidote("patch", "apply", place.write("p", b""), "--onto", "org/nothing", "--out", "x", code=2)
    assert done.stderr.count("error:") == 1
    done = antidote("repair", "org/nothing", "--harmful", place.harmful, "--out", "x", code=2)
    assert "org/nothing: no such folder here, and the Hub did not give it" in done.stderr
