"""Feeds damaged and hostile input to the command for some time, and counts how it ended: exit code 0 or 2, always.

    python -m benchmarks.fuzz --seconds 7200 --seed 1 --log runs/fuzz.jsonl
    python -m benchmarks.fuzz --case 1:patches:17

Checkpoints, adapters, patches, data, recipes, a judge's answers and options, one of each in turn. A problem is printed
with the name of its case, which repeats it: another exit code, an input that changed, a half result, a raw control
character, an error of several lines, a case without end, and a success with a wrong result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.running import Outcome, as_json, outcomes, run_case, write_inputs


def main() -> int:
    """Return 1 where anything should not have happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--log", type=Path, help="every outcome, one JSON object a line")
    parser.add_argument("--case", help="run this one alone, as SEED:KIND:NUMBER")
    given = parser.parse_args()
    if given.case:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            write_inputs(folder)
            print(as_json(run_case(given.case, Path(folder))))
        return 0
    print(f"seed {given.seed}, {given.seconds:g} s, {', '.join(given.kinds)}", flush=True)
    found = []
    for outcome in outcomes(cases(given.seed, given.kinds), time.monotonic() + given.seconds):
        found.append(outcome)
        if given.log:
            with given.log.open("a") as stream:
                stream.write(as_json(outcome) + "\n")
        if outcome.problem:
            print(f"{outcome.name}: {outcome.what}: {outcome.problem}", file=sys.stderr, flush=True)
    print(json.dumps(counts(found), indent=2))
    return any(outcome.problem for outcome in found)


def cases(seed: int, kinds: Sequence[str]) -> Iterator[str]:
    """Return the names of cases without end, one of each kind in turn."""
    return (f"{seed}:{kind}:{number}" for number in itertools.count() for kind in kinds)


def counts(found: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Return how often each kind of case ended in which way."""
    counted = {kind: Counter[str]() for kind in {outcome.name.split(":")[1]: None for outcome in found}}
    for outcome in found:
        counter = counted[outcome.name.split(":")[1]]
        counter["tried"] += 1
        counter["problems"] += bool(outcome.problem)
        counter[f"exit {outcome.code}"] += 1
    return {kind: dict(counter) for kind, counter in counted.items()}


if __name__ == "__main__":
    sys.exit(main())
