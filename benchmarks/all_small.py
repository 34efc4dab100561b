"""The small set of the benchmarks of speed and memory, within five minutes on two cores: one table of ratios.

    make bench

Every benchmark is a process of its own and writes its JSON; what is held to a limit comes together in one table. The
small set shows whether anything has slipped; the figures in the documentation come from the full benchmarks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antidote_llm.io.files import write_json, write_text
from benchmarks.interleaved import Check, checks_table, load_average


def stated(result: dict[str, Any]) -> list[Check]:
    """Return the checks that a benchmark has put in its result."""
    return [Check(**{name: each[name] for name in ("name", "value", "at", "limit")}) for each in result["checks"]]


def of_generation(result: dict[str, Any]) -> list[Check]:
    """Return whether answers are those of batch 1; of a tiny model, the ratio has no limit of its own."""
    return [
        Check(f"generation, {each['work']}: answers that differ without a tie", apart["not_ties"], "most", 0)
        for each in result["results"]
        for apart in [each["differing"]["slots"]]
    ]


def of_streaming(result: dict[str, Any]) -> list[Check]:
    """Return whether both engines gave the same bits; of a small model, memory and time have no limit of their own."""
    return [
        Check(f"streaming, {shape}: engines that differ", float(not found["same_bits"]), "most", 0)
        for shape, found in result["shapes"].items()
    ]


def of_writing(result: dict[str, Any]) -> list[Check]:
    """Return the memory of writing beside that of loading and saving."""
    way = "copy edited in place, and patch"
    return [Check(f"writing: peak memory, {way} / load and save", result["summary"][way]["peak_of_plain"], "most", 1)]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        module: Its name below this package.
        options: What it is run with, beside ``--small`` and ``--out``.
        works: Whether it is given a folder to work in.
        checks: What to hold to limits in its result.
    """

    module: str
    options: Sequence[str] = ()
    works: bool = True
    checks: Callable[[dict[str, Any]], list[Check]] = stated


SET = (
    Benchmark("scoring"),
    Benchmark("selection"),
    Benchmark("streaming", checks=of_streaming),
    Benchmark("writing", checks=of_writing),
    Benchmark("generation", ("--rounds", "2", "--threads", "2"), works=False, checks=of_generation),
)


def main() -> None:
    """Run them one after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", nargs="+", choices=[each.module for each in SET], help="leave out the others")
    arguments = parser.parse_args()
    checks: list[Check] = []
    seconds: dict[str, float] = {}
    load = load_average()
    chosen = [each for each in SET if not arguments.only or each.module in arguments.only]
    for number, benchmark in enumerate(chosen, start=1):
        print(f"== {number} of {len(chosen)}: {benchmark.module}", flush=True)
        start = time.perf_counter()
        checks += benchmark.checks(result_of(benchmark, arguments.out))
        seconds[benchmark.module] = time.perf_counter() - start
        print(f"== {benchmark.module}: {seconds[benchmark.module]:.0f} s", flush=True)
    table = checks_table(checks)
    result = {"seconds": seconds, "load_average": load, "checks": [check.as_json() for check in checks]}
    write_json(arguments.out / "all.json", result)
    write_text(arguments.out / "all.md", table)
    print(table)
    print(f"{sum(seconds.values()):.0f} s in all; the load was {load} before: a busy machine gives other ratios")


def result_of(benchmark: Benchmark, out: Path) -> dict[str, Any]:
    """Run a benchmark in a process of its own, and return its result."""
    path = out / f"{benchmark.module}.json"
    command = [sys.executable, "-m", f"benchmarks.{benchmark.module}", "--small", "--out", str(path)]
    if benchmark.works:
        command += ["--work", str(out / "work")]
    subprocess.run([*command, *benchmark.options], check=True)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


if __name__ == "__main__":
    main()
