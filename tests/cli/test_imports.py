"""Nothing heavy is imported before there is work for it: help, errors, patches and comparisons answer at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Command, Place

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors.torch")
CODE = (
    "import sys; from antidote_llm.cli.main import run; code = run(sys.argv[1:]); "
    f"sys.stderr.write('heavy: ' + ' '.join(name for name in {HEAVY!r} if name in sys.modules) + '\\n'); sys.exit(code)"
)
LIGHT = [
    ("--help",),
    ("--version",),
    *((name, "--help") for name in ("demo", "repair", "align", "finetune", "evaluate", "compare", "run")),
    ("miniature", "build", "--help"),
    ("patch", "show", "--help"),
    ("repair", "model", "--alpha", "much"),
    ("repair", "model", "--dtype", "int3"),
    ("finetune", "model", "--data", "rows.jsonl", "--rank", "0", "--out", "out"),
    ("repair", "model", "--method", "antidot", "--dry-run"),
    ("repair", "model", "--alpha", "9", "--dry-run"),
    ("finetune", "model", "--data", "rows.jsonl", "--defense", "lissa", "--out", "out"),
    ("run", "nowhere"),
    ("repiar",),
    ("patch", "show", "nowhere"),
    ("compare", "nowhere", "elsewhere"),
]


def heavy_imports(*words: object) -> str:
    """Run a command in a process of its own, and return which heavy libraries it imported."""
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, words)], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("heavy:"), done.stderr
    return last.removeprefix("heavy:").strip()


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_no_heavy_library_is_imported(words: tuple[str, ...]) -> None:
    assert heavy_imports(*words) == ""


def test_a_patch_is_shown_reverted_and_compared_without_heavy_libraries(place: Place, antidote: Command) -> None:
    antidote.done(*place.repair())
    assert heavy_imports("patch", "show", place.out) == ""
    assert heavy_imports("patch", "diff", place.out, place.out) == ""
    assert heavy_imports("patch", "revert", place.out, "--onto", place.out / "model", "--out", place.root / "old") == ""


def test_evaluations_are_compared_without_heavy_libraries(place: Place, antidote: Command) -> None:
    for name in ("before", "after"):
        asked = ["--harmful", place.harmful, "--max-new-tokens", 4]
        antidote.done("evaluate", place.base, "--adapter", place.adapter, *asked, "--out", place.root / name)
    assert heavy_imports("compare", place.root / "before", place.root / "after") == ""


def test_a_line_says_what_is_being_loaded(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "antidote_llm", *map(str, place.repair("--dry-run"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "loading torch and transformers"


def test_the_file_of_a_room_says_what_the_room_is_and_imports_nothing_of_it() -> None:
    root = Path(__file__).parents[2] / "src" / "antidote_llm"
    for init in root.glob("*/__init__.py"):
        text = init.read_text()
        assert text.startswith('"""') and "\nfrom antidote_llm" not in text, init
