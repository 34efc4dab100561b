"""What one line says where an engine finds a broken file, or an option has nothing to do."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.bad_targets import delta, tuned
from tests.cli.command import Command, Place, tree

KEY = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("engine", ["memory", "streaming"])
def test_both_engines_name_the_file_that_holds_nan(engine: str, place: Place, antidote: Command) -> None:
    arguments = delta(place)
    path = tuned(place) / "model.safetensors"
    weights = load_file(path)
    weights[KEY][0, 0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    before = tree(place.root)
    result = antidote(*arguments, "--engine", engine, "--no-cache")
    assert (result.code, len(result.errors)) == (2, 1)
    assert str(path) in result.errors[0] and KEY in result.errors[0] and "--dtype" not in result.errors[0]
    assert tree(place.root) == before


def test_rows_cannot_settle_what_needs_no_rows(place: Place, antidote: Command) -> None:
    before = tree(place.root)
    result = antidote(*place.repair("--method", "random", "--calibration", "auto"))
    assert (result.code, len(result.errors)) == (2, 1)
    assert "--calibration auto" in result.errors[0] and "--method random" in result.errors[0]
    assert tree(place.root) == before


def test_a_patch_alone_is_not_told_to_be_one(place: Place, antidote: Command) -> None:
    before = tree(place.root)
    result = antidote(*place.repair("--patch-only", "--max-disk", "1kB", "--no-cache"))
    assert (result.code, len(result.errors)) == (2, 1)
    assert "--max-disk" in result.errors[0] and "--patch-only" not in result.errors[0]
    assert tree(place.root) == before
