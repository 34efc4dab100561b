"""Lets every write, rename and flush of a command fail once, in turn; a process of its own, because it forks.

    python -m tests.fault_injection FOLDER [COMMAND ...] [--most N] [--seed SEED]

Runs a command twice undisturbed, counts its calls, and then runs it once for every call with that call failing: with
no room, a broken disk or a spent quota in turn, and for every write once more with a disk that is full from there on.
After each fault the command runs again undisturbed. Prints one JSON object: by command, the calls and what went wrong.
``--most N`` tries only N calls of each command, drawn by the seed, every kind of call among them.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from antidote_llm.cli.main import run
from antidote_llm.io.files import sha256_bytes, sha256_json
from tests import tiny
from tests.cli.command import tree
from tests.faults import Call, Ended, Fault, watched

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
WRITES = ("write", "pwrite64", "writev", "pwritev", "copy_file_range", "sendfile", "openat")
# What two runs of the same command do not share: how long they took, and the hash of the file that says so.
_TIMINGS = ("wall_seconds", "peak_rss_bytes", "resumed_from", "created", "command")


@dataclass(frozen=True)
class Place:
    """Where everything of this program lies.

    Attributes:
        root: All of it.
    """

    root: Path

    @property
    def inputs(self) -> Path:
        """What no command may change."""
        return self.root / "inputs"

    @property
    def out(self) -> Path:
        """The command's result."""
        return self.root / "results" / "out"

    @property
    def cache(self) -> Path:
        """What is kept between commands."""
        return self.root / "cache"

    @property
    def temporary(self) -> Path:
        """What TMPDIR names."""
        return self.root / "temporary"

    def made_anew(self) -> None:
        """Remove what a command left."""
        for folder in (self.out.parent, self.cache, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        self.temporary.mkdir()
        self.out.parent.mkdir()


def _repair(place: Place) -> list[object]:
    inputs = place.inputs
    harmful = ["--harmful", inputs / "harmful.jsonl"]
    return ["repair", inputs / "base", "--adapter", inputs / "adapter", *harmful, "--evaluate", "none"]


def _delta(place: Place) -> list[object]:
    inputs = place.inputs
    what = ["repair", inputs / "tuned", "--aligned", inputs / "base", "--harmful", inputs / "harmful.jsonl"]
    return [*what, "--evaluate", "none", "--engine", "streaming"]


def _judged(place: Place) -> list[object]:
    asked = ["--evaluate", place.inputs / "asked.jsonl", "--max-new-tokens", 3]
    return [*(part for part in _repair(place) if part not in ("--evaluate", "none")), *asked]


def _patched(direction: str) -> Callable[[Place], list[object]]:
    def arguments(place: Place) -> list[object]:
        onto = place.inputs / "adapter" if direction == "apply" else place.inputs / "repaired" / "model"
        return ["patch", direction, place.inputs / "repaired", "--onto", onto]

    return arguments


def _training(*more: object) -> Callable[[Place], list[object]]:
    def arguments(place: Place) -> list[object]:
        plain = ["finetune", place.inputs / "base", "--data", place.inputs / "harmful.jsonl", "--batch-size", 4]
        return [*plain, "--max-steps", 3, *more]

    return arguments


def _evaluation(place: Place) -> list[object]:
    return ["evaluate", place.inputs / "base", "--harmful", place.inputs / "asked.jsonl", "--max-new-tokens", 3]


COMMANDS: Mapping[str, Callable[[Place], list[object]]] = {
    "repair": _repair,
    "repair of a delta": _delta,
    "repair, judged": _judged,
    "apply": _patched("apply"),
    "revert": _patched("revert"),
    "training": _training("--rank", 2, "--save-every", 1),
    "training of all weights": _training("--full", "--save-every", 2),
    "evaluation": _evaluation,
}


def write_inputs(folder: Path) -> None:
    """Write a tiny model, an adapter, a fine-tune in two files, rows, and a repair."""
    base = tiny.write_model(folder / "base")
    adapter = tiny.write_adapter(folder / "adapter", base)
    tiny.write_model(folder / "tuned", seed=1, max_shard_size="40KB")
    harmful = tiny.write_rows(folder / "harmful.jsonl")
    tiny.write_rows(folder / "asked.jsonl", count=3, seed=5)
    repair = ["repair", base, "--adapter", adapter, "--harmful", harmful, "--evaluate", "none", "--no-cache"]
    code, said = _quietly([*repair, "--out", folder / "repaired"])
    assert code == 0, said


def tried(place: Place, name: str, most: int | None, seed: int) -> dict[str, Any]:
    """Let the calls of a command fail, and return what was tried and what went wrong."""
    arguments = [str(part) for part in (*COMMANDS[name](place), "--out", place.out)]
    before = tree(place.inputs)
    clean = _clean(place, arguments)
    wanted = product(place.out)
    place.made_anew()
    _clean(place, arguments)
    wrong = [] if product(place.out) == wanted else ["two clean runs differ"]
    print(f"{name}: {len(clean.calls)} calls", file=sys.__stderr__, flush=True)
    faults = _faults(clean.calls, most, random.Random(f"{seed} {name}"))
    for fault in faults:
        place.made_anew()
        ended = watched(lambda: run(arguments), [place.root], fault)
        call = ended.calls[fault.at] if fault.at < len(ended.calls) else Call("none", "")
        found = [*_wrong_after(place, ended, before, wanted), *_wrong_next(place, arguments, before, wanted)]
        shown = f"{call.name} {call.path.replace(str(place.root), '')}"
        kind = f"{errno.errorcode[fault.error]}{' from then on' if fault.lasting else ''}"
        new = [f"call {fault.at} ({shown}), {kind}: {each}" for each in found]
        # To the terminal itself: what commands say is not shown.
        print(*new, sep="\n", end="\n" if new else "", file=sys.__stderr__, flush=True)
        wrong += new
    place.made_anew()
    kinds = Counter(call.name for call in clean.calls)
    return {"calls": len(clean.calls), "kinds": dict(kinds), "faults": len(faults), "wrong": wrong}


def _clean(place: Place, arguments: Sequence[str]) -> Ended:
    place.made_anew()
    ended = watched(lambda: run(list(arguments)), [place.root])
    assert ended.code == 0, ended.said
    return ended


def _faults(calls: Sequence[Call], most: int | None, draw: random.Random) -> list[Fault]:
    """Return what is to fail: every call, or so many of them, some of every kind among them."""
    faults = [Fault(at, ERRORS[at % len(ERRORS)]) for at in range(len(calls))]
    faults += [Fault(at, errno.ENOSPC, lasting=True) for at, call in enumerate(calls) if call.name in WRITES]
    if most is None:
        return faults
    draw.shuffle(faults)
    # The first of every kind, then the others.
    of_kind: dict[str, Fault] = {}
    for fault in faults:
        of_kind.setdefault(f"{calls[fault.at].name} {fault.lasting}", fault)
    others = [fault for fault in faults if fault not in of_kind.values()]
    return [*of_kind.values(), *others[: max(0, most - len(of_kind))]]


def _wrong_after(place: Place, ended: Ended, before: Mapping[str, Any], wanted: Mapping[str, str]) -> list[str]:
    """Return what is wrong right after a fault."""
    found = []
    errors = [line for line in ended.said.splitlines() if line.startswith(("error:", "internal error:"))]
    if ended.code not in (0, 2) or "Traceback" in ended.said:
        found.append(f"exit code {ended.code}: {ended.said[-600:]}")
    if ended.code == 2 and (len(errors) != 1 or len(errors[0]) > 600):
        found.append(f"not one line: {errors}")
    if ended.code == 0 and (not place.out.exists() or product(place.out) != wanted):
        found.append("another result, with exit code 0")
    if ended.code != 0 and place.out.exists():
        found.append(f"something lies at --out: {ended.said[-300:]}")
    if tree(place.inputs) != before:
        found.append("an input was touched")
    left = _left(place)
    if kept := [name for name in left if name.endswith(".work")]:
        left = [name for name in left if name not in kept]
        if ended.code == 2 and not all(name in errors[0] for name in kept):
            found.append(f"kept, and not said: {kept}: {errors}")
    if left:
        found.append(f"left behind: {left}: exit code {ended.code}: {ended.said[-300:]}")
    return found


def _wrong_next(
    place: Place, arguments: Sequence[str], before: Mapping[str, Any], wanted: Mapping[str, str]
) -> list[str]:
    """Run the command again, and return what is wrong then."""
    code, said = _quietly(arguments)
    found = [] if code == 0 else [f"the next run: exit code {code}: {said[-600:]}"]
    if code == 0 and product(place.out) != wanted:
        differing = [name for name, sha256 in product(place.out).items() if wanted.get(name) != sha256]
        found.append(f"the next run's result is another: {differing}")
    if tree(place.inputs) != before:
        found.append("an input was touched by the next run")
    if left := _left(place):
        found.append(f"left behind by the next run: {left}")
    return found


def _left(place: Place) -> list[str]:
    """Return what lies beside the result, in TMPDIR, or hidden in the cache."""
    beside = [path for path in place.out.parent.iterdir() if path != place.out] if place.out.parent.exists() else []
    return sorted(
        str(path.relative_to(place.root)) for path in (*beside, *place.temporary.iterdir(), *place.cache.rglob(".*"))
    )


def product(out: Path) -> dict[str, str]:
    """Return the hashes of everything in a result; records without what they took."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    if path.name == "report.html":
        # It shows times and memory; what else it shows stands in the record and in the evaluations.
        return "a report"
    if path.name in ("repair.json", "training.json", "manifest.json"):
        fields = json.loads(path.read_bytes())
        fields["sha256"] = sorted(fields.get("sha256", ()))
        return sha256_json({name: value for name, value in fields.items() if name not in _TIMINGS})
    return sha256_bytes(path.read_bytes())


def _quietly(arguments: Sequence[object]) -> tuple[int, str]:
    """Run a command in a fork, unwatched."""
    said = os.memfd_create("said")
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said, 2)
            code = run([str(part) for part in arguments])
            sys.stderr.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    text = os.pread(said, os.fstat(said).st_size, 0).decode(errors="replace")
    os.close(said)
    return code, text


def main() -> None:
    """Try the commands that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"Some of {', '.join(COMMANDS)}.")
    parser.add_argument(
        "--most", type=int, help="How many calls of a command fail, some of every kind; all by default."
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(asked.folder.resolve())
    place.inputs.mkdir(parents=True)
    place.made_anew()
    os.environ |= {"ANTIDOTE_CACHE": str(place.cache), "TMPDIR": str(place.temporary), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = None
    write_inputs(place.inputs)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # In this very process, so that the forks find every library imported.
        for name in ("repair", "training", "evaluation"):
            place.made_anew()
            assert run([str(part) for part in (*COMMANDS[name](place), "--out", place.out)]) == 0
    report = {name: tried(place, name, asked.most, asked.seed) for name in asked.commands or COMMANDS}
    print(json.dumps({"seed": asked.seed, "commands": report}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
