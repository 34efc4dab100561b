"""Help, option errors, reading an evaluation and loading light judges import no torch, transformers or peft."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from antidote_llm.evaluation.answers import Answer
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.settings import EvaluationSettings

ROOM = "antidote_llm.evaluation"
# These compute with models.
HEAVY = {"generation", "continuous_batching"}
HEAVY_JUDGES = {"beaver_dam", "classifier", "folders", "guards", "text_classification"}

LIBRARIES = """
import sys
found = {"torch", "transformers", "peft"} & sys.modules.keys()
assert not found, found
"""


def modules(under: str, without: set[str]) -> list[str]:
    import antidote_llm.evaluation

    folder = Path(str(antidote_llm.evaluation.__file__)).parent / under
    package = ".".join([ROOM, *Path(under).parts])
    return [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem not in {*without, "__init__"}]


LIGHT = [*modules("", HEAVY), *modules("tasks", set()), *modules("judges", HEAVY_JUDGES)]


def run(code: str) -> None:
    found = subprocess.run([sys.executable, "-c", code + LIBRARIES], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_modules_that_do_not_compute_import_no_model_library() -> None:
    assert f"{ROOM}.evaluate" in LIGHT and f"{ROOM}.tasks.task" in LIGHT
    run(f"import {', '.join([*LIGHT, 'antidote_llm.decision.compare'])}")


@pytest.mark.parametrize("judge", ["refusal-patterns", "oracle", "likelihood-margin", "endpoint=http://localhost/v1#m"])
def test_only_the_named_judge_is_imported(judge: str) -> None:
    run(f"from antidote_llm.evaluation.panel import load_panel; load_panel(['{judge}'])")


def test_names_are_listed_without_importing_anything() -> None:
    run(f"from {ROOM}.judge import judge_names; from {ROOM}.tasks.task import task_names; judge_names(); task_names()")


def test_a_finished_evaluation_is_read_and_compared(tmp_path: Path) -> None:
    answers = [Answer("harmful", place, None, "p", None, "a", "harmful", None, 1) for place in range(3)]
    Evaluation.of(answers, "j", "harmful_score", EvaluationSettings()).write(tmp_path)
    run(
        f"from pathlib import Path; from {ROOM}.evaluation import Evaluation\n"
        "from antidote_llm.decision.compare import compare\n"
        f"found = Evaluation.read(Path({str(tmp_path)!r})); compare(found, found)\n"
    )
