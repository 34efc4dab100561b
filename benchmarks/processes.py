"""Two processes against one on the statistics of a repair, one thread each: seconds, and whether the bits are the same.

    python -m benchmarks.processes --work runs/bench --out runs/bench/processes.json

`antidote repair` of the 27M model under torchrun, the two in turns, every run a fresh start with a cache of its own.
Seconds are those that the record gives for the statistics; start-up and writing are not in them. The same bits means
that the statistics in the cache and the repaired adapter are the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from antidote_llm.io.files import write_json, write_text
from benchmarks.interleaved import Check, checks_table, load_average, medians, ratio
from benchmarks.random_llama import SHAPES, random_rows, write_checkpoint
from benchmarks.scoring import thinned

SIZE = "27M"
LEAST = 1.7


def main() -> None:
    """Run the repairs in turns, and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps the model, and the results while they are read")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", nargs="+", type=int, default=[2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a quarter of the rows, two rounds")
    arguments = parser.parse_args()
    folder = arguments.work / SIZE
    write_checkpoint(SHAPES[SIZE], folder)
    rows = thinned(random_rows(SHAPES[SIZE]), 1024, 4 if arguments.small else 1)
    lines = [json.dumps({"input_ids": row.input_ids, "response_start": row.response_start}) for row in rows]
    write_text(folder / "rows.jsonl", "\n".join(lines) + "\n")
    load = load_average()
    counts = [1, *arguments.processes]
    seconds: dict[str, list[float]] = {str(count): [] for count in counts}
    bits: dict[str, set[str]] = {str(count): set() for count in counts}
    for index in range(2 if arguments.small else arguments.repeats):
        for count in counts if index % 2 == 0 else counts[::-1]:
            found, sha256 = repaired(count, folder, arguments.work / "processes-out")
            seconds[str(count)].append(found)
            bits[str(count)].add(sha256)
            print(count, found, sha256, flush=True)
    same = len(set.union(*bits.values())) == 1
    checks = []
    for count in arguments.processes:
        name = f"{SIZE}, one thread each: one process / {count} processes"
        checks.append(Check(name, ratio(seconds, "1", str(count)), "least", LEAST * count / 2))
    checks.append(Check("different bits among their results", len(set.union(*bits.values())) - 1, "most", 0))
    result: dict[str, Any] = {
        "rows": len(rows),
        "seconds": seconds,
        "summary": medians(seconds),
        "same_bits": same,
        "load_average": [load, load_average()],
        "checks": [check.as_json() for check in checks],
    }
    write_json(arguments.out, result)
    write_text(arguments.out.with_suffix(".md"), checks_table(checks))
    print(checks_table(checks))


def repaired(processes: int, folder: Path, out: Path) -> tuple[float, str]:
    """Repair the model, and return the seconds of its statistics and the hash of these and of the adapter."""
    shutil.rmtree(out, ignore_errors=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "antidote_llm"]
    options = ["--adapter", folder / "adapter", "--harmful", folder / "rows.jsonl", "--evaluate", "none"]
    command = [sys.executable, *launch, "repair", folder / "base", *options, "--out", out / "repair"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANTIDOTE_CACHE": str(out / "cache")}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    record = json.loads((out / "repair" / "record" / "repair.json").read_text())
    results = [*sorted((out / "cache" / "moments").iterdir()), out / "repair" / "model" / "adapter_model.safetensors"]
    together = hashlib.sha256(b"".join(path.read_bytes() for path in results)).hexdigest()
    return record["wall_seconds"]["calibrate"], together


if __name__ == "__main__":
    main()
