from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.training import checkpoints
from tests.training.killed import CASES

_SECONDS = 240


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kill and resume every case, in one process that forks."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.training.killed", str(tmp_path_factory.mktemp("killed"))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_training_resumes_to_the_same_bits(name: str, report: Any) -> None:
    found, case = report[name], CASES[name]
    assert found["ending"] == signal.SIGKILL
    assert found["resumed_from"] == [case.resumes_from, *([case.training.max_steps] if case.ends_again else [])]
    assert all(found["same_losses"])
    assert all(found["same_weights"])


def test_only_complete_checkpoints_are_used(tmp_path: Path) -> None:
    for step in (6, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpoints.newest(tmp_path) is None
    for step in (6, 9):
        checkpoints.save_objective(tmp_path / f"checkpoint-{step}", {})
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-9"


def test_a_checkpoint_with_a_missing_file_is_not_used(tmp_path: Path) -> None:
    for step in (3, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state")
        checkpoints.save_objective(folder, {})
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-3"
    # When writing it again is interrupted, it has all its files, but some are old.
    with checkpoints.removed_on_failure(tmp_path / "checkpoint-6"):
        (tmp_path / "checkpoint-6" / "optimizer.pt").write_bytes(b"cut")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-3"
