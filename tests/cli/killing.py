"""Kills a command at random moments, and lets it run again to its end; a process of its own, because it forks.

    python -m tests.cli.killing INPUTS OUT CACHES KILLS SEED COMMAND...

Prints one JSON list: what was left after every kill, and after the run that followed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from antidote_llm.calibration import resume as kept_sums
from antidote_llm.cli.main import run
from antidote_llm.io.files import sha256_file
from tests.cli.command import tree


def main() -> None:
    """Kill and run again, as often as asked."""
    inputs, out, caches = map(Path, sys.argv[1:4])
    kills, seed, command = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6:]
    torch.set_num_threads(1)
    # Runs of this size are over before anything would be kept of them.
    kept_sums._AT_LEAST_SECONDS, kept_sums._COST = 0.0, 1.0
    before = tree(inputs)
    # In this very process, so that the forks find every library imported.
    os.environ["ANTIDOTE_CACHE"] = str(caches / "first")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert run(command) == 0
    durations = []
    for number in range(3):
        remove(out)
        start = time.perf_counter()
        assert ended(started(command, caches / f"timed-{number}")) == 0
        durations.append(time.perf_counter() - start)
    seconds = statistics.median(durations)
    wanted = product(out)
    draw = random.Random(seed)
    rounds: list[dict[str, Any]] = []
    while sum(each["killed"] for each in rounds) < kills and len(rounds) < 4 * kills:
        number = len(rounds)
        remove(out)
        delay = draw.uniform(0, 1.05 * seconds)
        process = started(command, caches / str(number))
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
        code = ended(process)
        finished = out.exists()
        left = sorted(path.name for path in out.parent.iterdir() if path != out) if out.parent.exists() else []
        goes_on = any(out.parent.glob(".*.work/statistics-*.safetensors"))
        whole = not finished or product(out) == wanted
        start = time.perf_counter()
        again = ended(started(command, caches / str(number)))
        seconds = 0.5 * (seconds + time.perf_counter() - start)
        rounds.append(
            {
                "delay": delay,
                "killed": code < 0,
                "finished": finished,
                "left": left,
                "goes_on": goes_on,
                "whole": whole,
                "again": again,
                "same": product(out) == wanted,
                "strays": sorted(path.name for path in out.parent.iterdir() if path != out),
                "cache_strays": [str(path) for path in (caches / str(number)).rglob(".*")],
                "inputs_untouched": tree(inputs) == before,
            }
        )
    print(json.dumps(rounds))  # noqa: T201


def started(command: list[str], cache: Path) -> int:
    """Run the command in a forked process that says nothing."""
    process = os.fork()
    if process:
        return process
    os.environ["ANTIDOTE_CACHE"] = str(cache)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os._exit(run(command))


def ended(process: int) -> int:
    """Wait for a process, and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def product(out: Path) -> dict[str, Any]:
    """Return the hashes of what ships and of what undoes it, and what it was made from."""
    files = [*sorted((out / "model").iterdir()), out / "record" / "patch.safetensors"]
    manifest = json.loads((out / "record" / "manifest.json").read_text())
    # The record tells how long it took, and so does its hash.
    manifest["sha256"].pop("record/repair.json")
    return {"manifest": manifest, **{str(path.relative_to(out)): sha256_file(path) for path in files}}


def remove(out: Path) -> None:
    """Remove a finished result; what a kill left beside it stays."""
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if out.exists():
        out.rmdir()


if __name__ == "__main__":
    main()
