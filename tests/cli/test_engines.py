"""Both engines, limits of memory and disk, patches without models, and several processes: through the real command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from antidote_llm.io.files import sha256_file
from tests import tiny
from tests.cli.bad_targets import adapter, delta, sharded, weight
from tests.cli.command import Command, Place, tree
from tests.training.launching import launched

TARGETS: dict[str, Callable[[Place], list[object]]] = {"adapter": adapter, "delta": delta, "weight": weight}


def product(out: Path) -> dict[str, str]:
    """Return the hashes of all weights and of the patch."""
    return {path.name: sha256_file(path) for path in sorted(out.rglob("*.safetensors"))}


def uncached(arguments: list[object], out: Path, *more: object) -> list[object]:
    return [*arguments, "--evaluate", "none", "--no-cache", "--out", out, *more]


@pytest.mark.parametrize("scope", ["row", "layer", "global"])
@pytest.mark.parametrize("target", TARGETS)
def test_both_engines_write_the_same_bytes(target: str, scope: str, place: Place, antidote: Command) -> None:
    arguments, found = TARGETS[target](place), []
    for engine in ("memory", "streaming"):
        out = place.root / engine
        said = antidote.done(*uncached(arguments, out, "--engine", engine, "--scope", scope)).err
        assert f"engine {engine}" in said
        found.append(product(out))
    assert found[0] == found[1] != {}


@pytest.mark.parametrize("engine", ["memory", "streaming"])
def test_settled_masks_are_those_of_the_rows_that_were_seen(engine: str, place: Place, antidote: Command) -> None:
    tiny.write_rows(place.harmful, count=300)
    out = place.root / "settled"
    given = uncached(place.repair()[:-2], out, "--engine", engine, "--calibration", "auto", "--alpha", "0.5")
    calibration = antidote.done(*given, "--json").json["repair"]["calibration"]
    assert calibration["of_rows"] == 300
    assert calibration["agreement_bound"] >= 0.95 or calibration["rows"] == 300


def test_a_patch_alone_makes_the_model_when_it_is_applied(place: Place, antidote: Command) -> None:
    arguments = TARGETS["delta"](place)
    antidote.done(*uncached(arguments, place.root / "whole"))
    said = antidote.done(*uncached(arguments, place.root / "alone", "--patch-only"))
    assert "antidote patch apply" in said.out
    assert sorted(path.name for path in (place.root / "alone").iterdir()) == ["record"]
    applied = place.root / "applied"
    antidote.done("patch", "apply", place.root / "alone", "--onto", arguments[1], "--out", applied)
    weights = {path.name: sha256_file(path) for path in applied.glob("*.safetensors")}
    patch = sha256_file(place.root / "alone" / "record" / "patch.safetensors")
    assert product(place.root / "whole") == weights | {"patch.safetensors": patch}
    again = antidote.done(*uncached(arguments, place.root / "alone", "--patch-only"))
    assert "finished already" in again.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-ram", "10MB"], ["0.01 GB", "raise --max-ram"]),
        (["--max-ram", "lots"], ["--max-ram lots", "16GB"]),
        (["--max-vram", "-3GB"], ["--max-vram", "16GB"]),
        (["--max-disk", "1kB"], ["--max-disk", "--patch-only"]),
        (["--max-disk", "0"], ["--max-disk 0", "16GB"]),
        (["--engine", "fast"], ["--engine"]),
        (["--engine", "streaming", "--evaluate", "HARMFUL"], ["layer by layer", "--evaluate none"]),
        (["--patch-only", "--evaluate", "HARMFUL"], ["--patch-only", "--evaluate none"]),
        (["--calibration", "some"], ["--calibration"]),
    ],
)
def test_limits_that_cannot_be_kept_are_named(
    options: list[str], words: list[str], place: Place, antidote: Command
) -> None:
    apart = tiny.write_rows(place.root / "apart.jsonl", count=4, seed=99)
    before = tree(place.root)
    given = [str(apart) if option == "HARMFUL" else option for option in options]
    result = antidote(*place.repair("--no-cache", *given))
    assert result.code == 2
    assert len(result.errors) == 1 and all(word in result.errors[0] for word in words), result.err
    assert tree(place.root) == before


def test_rows_without_answers_need_a_model_that_can_generate(place: Place, antidote: Command) -> None:
    place.harmful.write_text('{"prompt": "one"}\n')
    result = antidote(*place.repair("--engine", "streaming"))
    assert (result.code, len(result.errors)) == (2, 1)
    assert "file with responses" in result.errors[0]


@pytest.mark.parametrize("engine", ["memory", "streaming"])
def test_the_number_of_processes_changes_no_bit(engine: str, place: Place, antidote: Command) -> None:
    tiny.write_rows(place.harmful, count=150)
    found = []
    for count in (1, 2, 4):
        out = place.root / f"by-{count}"
        command = uncached(TARGETS["weight"](place), out, "--engine", engine)
        run = launched("--standalone", "--nproc-per-node", count, "-m", "antidote_llm", *command, seconds=240)
        assert run.returncode == 0, run.stderr
        found.append(product(out))
    assert found[0] == found[1] == found[2] != {}
    antidote.done(*uncached(TARGETS["weight"](place), place.root / "alone", "--engine", engine))
    assert product(place.root / "alone") == found[0]


WITHIN = """
import resource, sys
import torch
import bitsandbytes, pyarrow.parquet, scipy.stats, peft
from antidote_llm.cli.application import application
from antidote_llm.cli.main import run
application()
torch.set_num_threads(1)
(held,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData:")]
limit = int(held) * 1024 + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts private memory on Linux alone")
def test_a_model_larger_than_its_memory_is_repaired_within_it(place: Place) -> None:
    """The system grants the process less private memory, beside its libraries, than the model has bytes."""
    big = tiny.write_model(place.root / "big", hidden_size=512, intermediate_size=2048, num_hidden_layers=40)
    size = sum(path.stat().st_size for path in big.glob("*.safetensors"))
    command = ["repair", big, "--target", "weight", "--harmful", place.harmful, "--evaluate", "none", "--no-cache"]
    command += ["--sites", "attention", "--patch-only"]
    given = [sys.executable, "-c", WITHIN, int(0.7 * size), *command, "--engine", "streaming", "--out", place.out]
    run = subprocess.run(list(map(str, given)), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_process_that_is_left_alone_says_so_in_one_line(place: Place) -> None:
    command = uncached(TARGETS["weight"](place), place.root / "out", "--engine", "streaming", "--max-disk", "1kB")
    run = launched("--standalone", "--nproc-per-node", 2, "-m", "antidote_llm", *command, seconds=240)
    assert run.returncode != 0 and "error: --max-disk" in run.stderr
    # Whether it hears of the other's end from torchrun or finds out by itself.
    assert "error: another process has ended" in run.stderr or "\ninterrupted\n" in run.stderr
    assert "internal error" not in run.stderr and not (place.root / "out").exists()


def test_files_that_do_not_change_count_as_well_where_they_are_copied(place: Place, antidote: Command) -> None:
    arguments = [*TARGETS["weight"](place), "--sites", "*.layers.1.*", "--no-cache"]
    first, second = sharded(place.base)
    most = second.stat().st_size + first.stat().st_size
    filled = antidote(*arguments, "--max-disk", f"{most}B")
    assert (filled.code, len(filled.errors)) == (2, 1) and "--max-disk" in filled.errors[0], filled.err
    antidote.done(*arguments, "--max-disk", f"{most}B", "--hard-links")
