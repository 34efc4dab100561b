"""Calls on untrusted input are stopped if they take too much, and the next one works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from antidote_llm.io import bounded_calls as bounded
from antidote_llm.io.bounded_calls import (
    Budget,
    CallError,
    OverBudgetError,
    Reply,
    bounded_call,
    bounded_calls,
    matching_places,
)

SHORT = Budget(seconds=0.2, memory_bytes=100_000_000, reply_bytes=1000)


def test_values_and_errors_come_back() -> None:
    assert bounded_call("json:loads", {"s": '["zorbik", "\\ud800", 1]'}).value == ["zorbik", "\ud800", 1]
    with pytest.raises(CallError, match="Expecting value"):
        bounded_call("json:loads", {"s": "zorbik"})
    assert matching_places(["b.*", ".*k"], ["zorbik", "bek", "zorb"]) == [1, 0, -1]
    with pytest.raises(CallError, match="unterminated subpattern"):
        matching_places(["("], ["a"])


def test_a_long_error_is_cut() -> None:
    with pytest.raises(CallError, match="zorbzorb") as said:
        bounded_call("importlib:import_module", {"name": "zorb" * 10**6})
    assert len(str(said.value)) <= 1000


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("re:fullmatch", {"pattern": "((a)+)+b", "string": "a" * 60}, "takes too long"),
        ("time:sleep", {"secs": 1}, None),
        ("builtins:bytearray", {"source": 10**9}, "more than 100 MB"),
        ("os:abort", {}, "ends its process .SIGABRT"),
        ("textwrap:indent", {"text": "a" * 2000, "prefix": ""}, "more than 1,000 characters"),
    ],
)
def test_a_call_that_takes_too_much_is_stopped(
    function: str, arguments: dict[str, object], message: str | None
) -> None:
    with pytest.raises((OverBudgetError, CallError), match=message):
        bounded_call(function, arguments, SHORT)
    assert bounded_call("json:loads", {"s": "1"}).value == 1


def test_a_batch_gives_each_call_its_outcome_and_ends_with_the_first_that_takes_too_much() -> None:
    calls: list[dict[str, object]] = [{"string": "ab"}, {"string": 5}, {"string": "a" * 60}, {"string": "b"}]
    first, second, third = bounded_calls("re:fullmatch", calls, SHORT, shared={"pattern": "((a)+)+b|c"})
    assert isinstance(first, CallError) and "not JSON serializable" in str(first)
    assert isinstance(second, CallError) and "expected string" in str(second)
    assert isinstance(third, OverBudgetError) and "takes too long" in str(third)
    kept = bounded_calls("json:loads", [{"s": "1"}, {"s": "2"}], SHORT)
    assert [outcome.value for outcome in kept if isinstance(outcome, Reply)] == [1, 2]


def test_a_large_batch_does_not_fill_the_pipes() -> None:
    text = "zorb" * 25_000
    outcomes = bounded_calls("textwrap:dedent", [{"text": text}] * 50, Budget(reply_times=2, reply_bytes=0))
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Reply)] == [text] * 50


def test_a_call_that_waits_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_WALL_SECONDS", 0.2)
    monkeypatch.setattr(bounded, "_WALL_FACTOR", 1.0)
    with pytest.raises(OverBudgetError, match="takes too long"):
        bounded_call("signal:pause", {}, SHORT)
    monkeypatch.undo()
    assert bounded_call("json:loads", {"s": "1"}).value == 1


def test_one_process_serves_all_calls_and_is_replaced_when_it_was_killed() -> None:
    first = bounded_call("os:getpid", {}).value
    assert bounded_call("os:getpid", {}).value == first != os.getpid()
    psutil.Process(first).send_signal(signal.SIGKILL)
    psutil.Process(first).wait(10) if psutil.pid_exists(first) else None
    assert bounded_call("os:getpid", {}).value != first


def test_the_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "from antidote_llm.io.bounded_calls import bounded_call; import os, sys\n"
        "print(bounded_call('os:getpid', {}).value, flush=True)\n"
        "os.kill(os.getpid(), int(sys.argv[1])) if sys.argv[1] != '0' else None\n"
    )
    for number in ("0", str(int(signal.SIGKILL))):
        ended = subprocess.run(
            [sys.executable, "-c", script, number],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
        process = int(ended.stdout)
        if psutil.pid_exists(process):
            psutil.Process(process).wait(10)
        assert ended.stderr == ""
