"""Calls functions on untrusted input, such as chat templates and patterns, with limits of time, memory and size.

Neither can be stopped inside this process: a pattern does not release the interpreter, and a template that doubles a
text takes all memory before a check can run. So they run in a second process, which is started once and kept. It is
started fresh, not forked: a fork would hold the memory of models that this process has released.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from antidote_llm.errors import DefectError
from antidote_llm.io import bounded_worker

# Processor time is what is limited; this ends a process that waits, on a machine however busy.
_WALL_SECONDS, _WALL_FACTOR = 60.0, 20.0
_START = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


class OverBudgetError(Exception):
    """A call exceeded its budget. The text is a predicate, such as ``takes too long (more than 3 s)``."""


class CallError(Exception):
    """A function raised an exception, whose text this is."""


@dataclass(frozen=True)
class Budget:
    """What one call may take.

    Attributes:
        seconds: Processor time, rounded up to the next second.
        memory_bytes: Memory above what the process holds before the call.
        reply_bytes: Length of the returned value as JSON.
        seconds_each: In a batch, what each call adds to the time left for the next, up to ``seconds``.
        reply_times: In a batch, how often the length of a call's own arguments is added to ``reply_bytes``.
    """

    seconds: float = 3.0
    memory_bytes: int = 1_000_000_000
    reply_bytes: int = 64_000_000
    seconds_each: float = 0.0
    reply_times: int = 0


DEFAULT = Budget()


@dataclass(frozen=True)
class Reply:
    """What a call returned, and the processor time left for the next call of its batch."""

    value: Any
    seconds_left: float


Outcome: TypeAlias = Reply | CallError | OverBudgetError


def bounded_call(function: str, arguments: Mapping[str, Any], budget: Budget | None = None) -> Reply:
    """Call a function in the second process, and stop it where it exceeds its budget.

    Args:
        function: Its module and name, as in ``json:loads``.
        arguments: By name; JSON values, as is what it returns.
        budget: What it may take.

    Raises:
        OverBudgetError: It takes more.
        CallError: It raised an exception.
    """
    (outcome,) = bounded_calls(function, [arguments], budget or DEFAULT)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def bounded_calls(
    function: str,
    calls: Sequence[Mapping[str, Any]],
    budget: Budget,
    *,
    shared: Mapping[str, Any] | None = None,
    seconds_left: float | None = None,
) -> list[Outcome]:
    """Call a function many times in one exchange with the second process, each time within the budget.

    Args:
        function: Its module and name, as in ``json:loads``.
        calls: The arguments of each call, by name.
        budget: What each call may take.
        shared: Arguments that all calls share.
        seconds_left: Processor time left for the first call; ``budget.seconds`` where not given.

    Returns:
        The outcome of each call, in order. The list ends with the first call that exceeds its budget.
    """
    with _lock:
        worker = _workers.get(os.getpid())
        if worker is None or worker.process.poll() is not None:
            worker = _workers[os.getpid()] = _Worker.start()
        request = {"function": function, "shared": shared or {}, **asdict(budget)}
        request["seconds_left"] = budget.seconds if seconds_left is None else seconds_left
        return worker.outcomes(request, calls)


def matching_places(patterns: list[str], names: list[str], budget: Budget | None = None) -> list[int]:
    """Return for each name the index of the first regular expression that matches all of it; -1 where none does.

    Raises:
        OverBudgetError: Matching takes too long.
        CallError: A pattern is not a regular expression.
    """
    arguments = {"patterns": patterns, "names": names}
    places: list[int] = bounded_call(f"{bounded_worker.__name__}:first_matches", arguments, budget).value
    return places


def _too_long(seconds: float) -> OverBudgetError:
    return OverBudgetError(f"takes too long (more than {max(1, round(seconds))} s)")


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    replies: queue.SimpleQueue[bytes] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Queue every reply, and an empty one when the process ends."""
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.replies.put(line)
        self.replies.put(b"")

    @classmethod
    def start(cls) -> _Worker:
        command = [sys.executable, "-c", _START.format(path=sys.path, module=bounded_worker.__name__)]
        # A session of its own: Ctrl-C reaches only the parent, which stops the worker when it exits.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        return cls(process)

    def outcomes(self, request: dict[str, Any], calls: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        encoded = [json.dumps(arguments, default=str) for arguments in calls]
        most, times = request["reply_bytes"], request["reply_times"]
        request["reply_bytes"] = [most + times * len(arguments) for arguments in encoded]
        line = json.dumps(request, default=str).removesuffix("}") + f', "calls": [{", ".join(encoded)}]}}\n'
        try:
            self._send(line.encode())
            return list(self._replies(len(calls), request["seconds_left"]))
        except BaseException:
            # An interrupt too: replies that are still to come belong to no later request.
            self.stop()
            raise

    def _replies(self, count: int, seconds_left: float) -> Iterator[Outcome]:
        """Yield the outcome of every call, up to the first that exceeds its budget."""
        for _ in range(count):
            try:
                reply = json.loads(self._reply(seconds_left))
            except OverBudgetError as error:
                self.stop()
                yield error
                return
            if "over" in reply:
                yield OverBudgetError(reply["over"])
                return
            seconds_left = reply["seconds_left"]
            yield CallError(reply["error"]) if "error" in reply else Reply(reply["value"], seconds_left)

    def _send(self, request: bytes) -> None:
        assert self.process.stdin is not None
        # Where it has ended, the queue says so: its last item is empty.
        with suppress(BrokenPipeError):
            self.process.stdin.write(request)
            self.process.stdin.flush()

    def _reply(self, seconds_left: float) -> bytes:
        try:
            line = self.replies.get(timeout=_WALL_SECONDS + _WALL_FACTOR * seconds_left)
        except queue.Empty:
            raise _too_long(seconds_left) from None
        if not line:
            raise self._ended(seconds_left)
        return line

    def _ended(self, seconds_left: float) -> Exception:
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            return _too_long(seconds_left)
        if code < 0:
            return OverBudgetError(f"ends its process ({signal.Signals(-code).name})")
        return DefectError(f"{bounded_worker.__name__} ended with exit code {code}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        # It may have ended before it read all that was written.
        with suppress(BrokenPipeError):
            self.process.stdin.close()


_lock = threading.Lock()
_workers: dict[int, _Worker] = {}


@atexit.register
def _stop_worker() -> None:
    if (worker := _workers.pop(os.getpid(), None)) is not None:
        worker.stop()
