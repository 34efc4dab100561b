"""Starts several processes that train together, and ends all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_GRACE_SECONDS = 60


def launched(
    *arguments: object, seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``torchrun`` from the repository; after its time it gets SIGTERM, because SIGKILL would leave its workers."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    with subprocess.Popen(command, env=variables, cwd=root, stdout=pipe, stderr=pipe, text=True) as started:
        try:
            out, err = started.communicate(timeout=seconds)
        except BaseException:
            started.terminate()
            try:
                started.wait(_GRACE_SECONDS)
            finally:
                started.kill()
            raise
    return subprocess.CompletedProcess(command, started.returncode, out, err)
