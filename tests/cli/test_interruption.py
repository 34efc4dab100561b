"""Stopped at any moment, a repair leaves its inputs as they were and nothing that looks finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from antidote_llm.cli.main import main
from tests import tiny
from tests.cli.command import Command, Place, tree

STEPS = ("plan_repair", "write_repair", "compose", "write_report", "model_card_section")


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_in_any_step_leaves_nothing(
    step: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"antidote_llm.workflows.repair.{step}", interrupted)
    before = tree(place.root)
    result = antidote(*place.repair())
    assert (result.code, result.err.splitlines()[-1]) == (130, "interrupted")
    assert tree(place.root) == before


def test_an_interrupt_after_the_result_is_in_place_says_nothing_else(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as late:
        late.setattr("antidote_llm.workflows.repair.read_repair", interrupted)
        result = antidote(*place.repair())
    assert (result.code, result.err.splitlines()[-1]) == (130, "interrupted")
    assert "finished already" in antidote.done(*place.repair()).err


def test_too_little_memory_is_said_in_one_line(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nIf reserved memory is large")

    monkeypatch.setattr("antidote_llm.repairs.plan.Collection.by_part", exhausted)
    before = tree(place.root)
    result = antidote(*place.repair())
    assert result.code == 2
    (line,) = result.errors
    assert line.startswith("error: not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB.): pass")
    assert tree(place.root) == before


def stopped(place: Place, how: signal.Signals, delay: float) -> int:
    """Start a repair that takes a while, and stop it some time after it has begun."""
    command = [str(Path(sys.executable).with_name("antidote")), *map(str, place.repair("--no-cache"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        # What ignores the signal, as nohup does, hands that down.
        preexec_fn=partial(signal.signal, how, signal.SIG_DFL) if how != signal.SIGKILL else None,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"loading")
        assert process.stderr.readline().startswith(b"opening")
        time.sleep(delay)
        process.send_signal(how)
        process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize(
    ("how", "delay"), [(signal.SIGTERM, 0.1), (signal.SIGTERM, 0.8), (signal.SIGHUP, 0.3), (signal.SIGKILL, 0.5)]
)
def test_a_kill_leaves_nothing_that_looks_finished(
    how: signal.Signals, delay: float, place: Place, antidote: Command
) -> None:
    tiny.write_rows(place.harmful, count=20_000)
    before = tree(place.root)
    code = stopped(place, how, delay)
    assert code != 0, f"it had finished after {delay} s"
    assert not place.out.exists()
    left = {name: entry for name, entry in tree(place.root).items() if name not in before}
    if how != signal.SIGKILL:
        assert (code, left) == (130, {})
    assert {name: entry for name, entry in tree(place.root).items() if name in before} == before


def test_what_is_ignored_from_the_start_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    during: dict[int, object] = {}

    def run(_: list[str]) -> int:
        during.update({number: signal.getsignal(number) for number in before})
        return 0

    monkeypatch.setattr("antidote_llm.cli.main.run", run)
    try:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        # As nohup does.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with pytest.raises(SystemExit):
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert during[signal.SIGHUP] is signal.SIG_IGN
    assert during[signal.SIGINT] == during[signal.SIGTERM] and callable(during[signal.SIGINT])


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_pipe_that_nobody_reads_is_no_verdict(more: list[str], place: Place, antidote: Command) -> None:
    antidote.done(*place.repair())
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "antidote_llm", "patch", "show", str(place.out), *more]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_what_a_kill_left_is_taken_up_by_the_same_command(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr("antidote_llm.io.result_folder.ResultFolder._clean", lambda self: None)
        killed.setattr("antidote_llm.workflows.repair.write_report", lambda *_, **__: 1 / 0)
        assert antidote(*place.repair()).code == 3
    assert [path.name for path in place.out.parent.iterdir()] != []
    assert not place.out.exists()
    antidote.done(*place.repair())
    assert [path.name for path in place.out.parent.iterdir()] == [place.out.name]


@pytest.mark.parametrize(
    ("target", "engine", "kills"), [("adapter", "memory", 25), ("delta", "memory", 25), ("delta", "streaming", 50)]
)
def test_kills_at_random_moments_lose_nothing(target: str, engine: str, kills: int, tmp_path: Path) -> None:
    """Kills over the whole length of a repair, each followed by a run to the end."""
    inputs = tmp_path / "inputs"
    aligned = tiny.write_model(inputs / "aligned", max_shard_size="40KB")
    rows = tiny.write_rows(inputs / "harmful.jsonl", count=40 if engine == "memory" else 150)
    if target == "adapter":
        what = [aligned, "--adapter", tiny.write_adapter(inputs / "adapter", aligned)]
    else:
        what = [tiny.write_model(inputs / "tuned", seed=1, max_shard_size="40KB"), "--aligned", aligned]
    out = tmp_path / "results" / "repaired"
    command = ["repair", *what, "--harmful", rows, "--evaluate", "none", "--engine", engine, "--out", out]
    arguments = [inputs, out, tmp_path / "caches", kills, 7, *command]
    run = subprocess.run(
        [sys.executable, "-m", "tests.cli.killing", *map(str, arguments)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    rounds = json.loads(run.stdout)
    assert sum(round["killed"] for round in rounds) == kills
    for round in rounds:
        assert round["inputs_untouched"] and round["whole"], round
        # Beside a finished result at most what it could have gone on from, until it is found finished.
        assert not round["finished"] or all(name.endswith(".work") for name in round["left"]), round
        assert (round["again"], round["same"], round["strays"]) == (0, True, []), round
        assert round["cache_strays"] == [], round
    assert any(round["left"] for round in rounds), "no kill hit while the result was written"
    if engine == "streaming":
        assert any(round["goes_on"] for round in rounds), "no kill hit when there was something to go on from"
