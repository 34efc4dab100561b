"""Runs cases in a process of its own, one after the other, and says of each how it ended."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tests.fuzz.case import Case, Inputs

# A case takes a second or so; one that takes longer than this is stopped, and counts as one that never ends.
LONGEST_S = 60.0
_MOST_CHARACTERS = 700
_MOST_GROWTH_BYTES = 700_000_000
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Outcome:
    """How one case ended.

    Attributes:
        name: Seed, kind and number: what repeats it.
        what: What was done to the input.
        code: Exit code; None where it had to be stopped.
        problem: What should not have happened; empty where nothing.
        seconds: How long it took.
    """

    name: str
    what: str
    code: int | None
    problem: str
    seconds: float


def outcomes(names: Iterator[str], until: float) -> Iterator[Outcome]:
    """Run cases by name until a moment of the monotonic clock, each watched from outside."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        sound = context.Process(target=write_inputs, args=(folder,))
        sound.start()
        sound.join()
        waiting: str | None = next(names)
        while waiting is not None and time.monotonic() < until:
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, folder), daemon=True)
            worker.start()
            theirs.close()
            ready = ours.poll(LONGEST_S) and ours.recv() == "ready"
            while ready and waiting is not None and time.monotonic() < until:
                ours.send(waiting)
                start = time.monotonic()
                try:
                    done = ours.poll(LONGEST_S)
                    yield Outcome(**ours.recv()) if done else Outcome(waiting, "", None, "never ends", LONGEST_S)
                except EOFError:
                    yield Outcome(waiting, "", None, "the process died", time.monotonic() - start)
                    done = False
                waiting = next(names, None)
                if not done:
                    break
            worker.kill()
            worker.join()


def write_inputs(folder: str) -> None:
    """Write the sound inputs below a folder."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Inputs.write(Path(folder) / "sound")


def _work(connection: Connection, folder: str) -> None:
    import torch

    # Imported before the clock runs.
    for name in ("evaluate", "patch", "recipe", "repair", "train"):
        importlib.import_module(f"antidote_llm.workflows.{name}")
    torch.set_num_threads(1)
    connection.send("ready")
    while True:
        connection.send(asdict(run_case(connection.recv(), Path(folder))))


def run_case(name: str, folder: Path) -> Outcome:
    """Run one case: the name says which."""
    from tests.fuzz.kinds import KINDS

    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    given = Inputs(folder / "sound").copied(place)
    os.chdir(place)
    case = KINDS[name.split(":")[1]](Random(name), given)
    before, held, start = _tree(place), _peak_bytes(), time.monotonic()
    code, said, crash = _run(case)
    seconds = time.monotonic() - start
    problem = crash or _problem(case, code, said, before, _tree(place))
    if not problem and _peak_bytes() - held > _MOST_GROWTH_BYTES:
        problem = f"took {(_peak_bytes() - held) / 1e6:.0f} MB"
    if not problem and code == 0:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            problem = case.wrong_success() or ""
    return Outcome(name, case.what, code, problem, seconds)


def _run(case: Case) -> tuple[int, str, str]:
    """Return the exit code, what was written to standard error, and a traceback where the command has one."""
    from antidote_llm.cli.main import run

    said = io.StringIO()
    try:
        with case.around, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            return run(case.arguments), said.getvalue(), ""
    except BaseException:  # noqa: BLE001 - nothing at all may come out of the command
        return 3, said.getvalue(), traceback.format_exc()[-1500:]


def _problem(case: Case, code: int, said: str, before: dict[str, bytes], after: dict[str, bytes]) -> str:
    """Return what the command did that it must not do; empty where nothing."""
    changed = [name for name, content in before.items() if after.get(name) != content]
    if changed:
        return f"changed its input {changed[0]}"
    if code not in (0, 2):
        return f"exit code {code}: {said.strip().splitlines()[-1:]}"
    if match := _CONTROLS.search(said):
        return f"wrote U+{ord(match[0]):04X} to the terminal"
    if code == 0:
        return ""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if len(lines) != 1:
        return f"{len(lines)} error lines: {said[-300:]}"
    if len(lines[0]) > _MOST_CHARACTERS:
        return f"an error line of {len(lines[0])} characters"
    if case.out is not None and (remains := sorted(after.keys() - before.keys())):
        return f"left {remains[0]}"
    return ""


def _tree(place: Path) -> dict[str, bytes]:
    """Return every file below a folder by name: its content, where a link leads, or what else it is."""
    found: dict[str, bytes] = {}
    for path in place.rglob("*"):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = b"link " + bytes(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not path.is_dir():
            found[name] = b"special"
    return found


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def as_json(outcome: Outcome) -> str:
    """Return an outcome on one line."""
    return json.dumps(asdict(outcome))
