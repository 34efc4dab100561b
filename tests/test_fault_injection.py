"""Every write, rename and flush of a command may fail: one line, nothing half done, and the next run as if nothing was.

``python -m tests.fault_injection FOLDER`` tries all of them; here some of every kind are tried, drawn by a seed.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Fault, require_watching, watched

COMMANDS = ("repair", "apply", "revert", "training")
SEED = 0
_SECONDS = 600


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Try them all, in one process that forks."""
    require_watching()
    folder = tmp_path_factory.mktemp("faults") / "place"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fault_injection", str(folder), *COMMANDS),
            *("--most", "16", "--seed", str(SEED)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)["commands"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_call_of_the_system_that_fails_does_no_harm(command: str, report: Any) -> None:
    found = report[command]
    assert found["calls"] > 20 and found["faults"] >= 16
    assert {"write", "rename", "fsync", "openat", "mkdir"} <= found["kinds"].keys()
    assert found["wrong"] == [], f"seed {SEED}"


def test_a_call_fails_in_its_turn_and_once(tmp_path: Path) -> None:
    require_watching()
    path = tmp_path / "file"
    path.touch()

    def work() -> int:
        for text in ("a", "b", "c"):
            try:
                handle = os.open(path, os.O_WRONLY | os.O_APPEND)
                os.write(handle, text.encode())
                os.close(handle)
            except OSError as error:
                return int(error.errno or 0)
        return 0

    clean = watched(work, [tmp_path])
    assert clean.code == 0 and [call.name for call in clean.calls] == ["openat", "write", "close"] * 3
    for at, text in enumerate(("", "", "a", "a", "a", "ab")):
        path.write_text("")
        assert watched(work, [tmp_path], Fault(at, errno.EDQUOT)).code == errno.EDQUOT
        assert path.read_text() == text
    assert watched(work, [tmp_path / "nowhere"]).calls == ()
