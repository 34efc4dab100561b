"""How soon the command answers where no model is needed: seconds to its first line, and processor seconds in all.

    python -m benchmarks.startup [--before PYTHON] [--rounds N] [--out FILE]

``--before`` names the Python of another installation: both are measured in turn, round by round, and compared. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests import tiny

MOST_CPU_SECONDS = 1.0
MOST_OF_BEFORE = 0.1


def cases(folder: Path) -> dict[str, list[str]]:
    """Make a patch, and return the command lines by name."""
    torch.set_num_threads(1)
    base = tiny.write_model(folder / "base")
    adapter = tiny.write_adapter(folder / "adapter", base)
    rows = tiny.write_rows(folder / "rows.jsonl")
    words = ["repair", str(base), "--adapter", str(adapter), "--harmful", str(rows), "--evaluate", "none"]
    out = str(folder / "repaired")
    subprocess.run([sys.executable, "-m", "antidote_llm", *words, "--out", out], check=True, capture_output=True)
    return {
        "--help": ["--help"],
        "repair --help": ["repair", "--help"],
        "an option error": ["repair", str(base), "--alpha", "much"],
        "patch show": ["patch", "show", out],
    }


def measure(python: str, words: Sequence[str]) -> dict[str, float]:
    """Run a command once."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [python, "-m", "antidote_llm", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/"
    )
    assert process.stdout is not None
    process.stdout.readline()
    first = time.perf_counter() - began
    process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return {"first_line_seconds": first, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def main() -> None:
    """Measure, print a table, and write JSON where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", help="Python of the installation to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pythons = {"now": sys.executable, **({"before": given.before} if given.before else {})}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in cases(Path(folder)).items():
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in pythons}
            for _ in range(given.rounds + 1):
                for side, python in pythons.items():
                    runs[side].append(measure(python, words))
            # The first round reads files that the others find in memory.
            found[name] = {side: _medians(each[1:]) for side, each in runs.items()}
            if given.before:
                ratio = found[name]["now"]["cpu_seconds"] / found[name]["before"]["cpu_seconds"]
                found[name]["cpu_ratio"] = ratio
            print(name, json.dumps(found[name]), flush=True)
    result = {"rounds": given.rounds, "limits": {"cpu_seconds": MOST_CPU_SECONDS, "cpu_ratio": MOST_OF_BEFORE}}
    if given.out:
        given.out.write_text(json.dumps({**result, "commands": found}, indent=2) + "\n")


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
