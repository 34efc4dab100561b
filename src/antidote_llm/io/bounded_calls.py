"""Calls of functions on input of untrusted origin, with limits of time, memory and size: chat templates, patterns.

Neither can be stopped where it runs in this process: a pattern holds on to the interpreter, and a template that doubles
a text takes all memory before anybody looks. So they run in a second process, which is started once and kept. It is a
fresh one, not a copy of this one, which would keep the memory of the models that this one gives back.
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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from antidote_llm.errors import DefectError
from antidote_llm.io import bounded_worker

# Processor time is what is limited; this ends a process that waits, on a machine however busy.
_WALL_SECONDS, _WALL_FACTOR = 60.0, 20.0
_START = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


class OverBudgetError(Exception):
    """A call was stopped: what it takes, as a part of a sentence that begins with what was called."""


class CallError(Exception):
    """What a function raised, in its words."""


@dataclass(frozen=True)
class Budget:
    """What one call may take.

    Attributes:
        seconds: Of processor time, to the next second.
        memory_bytes: Beside what the process takes before.
        reply_bytes: The length of what it returns, as JSON.
    """

    seconds: float = 3.0
    memory_bytes: int = 1_000_000_000
    reply_bytes: int = 64_000_000


DEFAULT = Budget()


@dataclass(frozen=True)
class Reply:
    """What a call returned, and the seconds of processor time that it took."""

    value: Any
    seconds: float


def bounded_call(function: str, arguments: dict[str, Any], budget: Budget | None = None) -> Reply:
    """Call a function in a process of its own, and stop it where it takes too much.

    Args:
        function: Its module and name, as in ``json:loads``.
        arguments: By name: JSON values, as is what it returns.
        budget: What it may take.

    Raises:
        OverBudgetError: It takes more.
        CallError: It raised something.
    """
    with _lock:
        worker = _workers.get(os.getpid())
        if worker is None or worker.process.poll() is not None:
            worker = _workers[os.getpid()] = _Worker.start()
        return worker.call(function, arguments, budget or DEFAULT)


def matching_places(patterns: list[str], names: list[str], budget: Budget | None = None) -> list[int]:
    """Return for each name the place of the first regular expression that matches all of it; -1 where none does.

    Raises:
        OverBudgetError: They have no end in sight.
        CallError: One is no regular expression.
    """
    arguments = {"patterns": patterns, "names": names}
    places: list[int] = bounded_call(f"{bounded_worker.__name__}:first_matches", arguments, budget).value
    return places


def _too_long(budget: Budget) -> OverBudgetError:
    return OverBudgetError(f"takes too long (more than {max(1, round(budget.seconds))} s)")


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    replies: queue.SimpleQueue[bytes] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        """Keep every reply, and an empty one at the end."""
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.replies.put(line)
        self.replies.put(b"")

    @classmethod
    def start(cls) -> _Worker:
        command = [sys.executable, "-c", _START.format(path=sys.path, module=bounded_worker.__name__)]
        # In a session of its own: Ctrl-C is for the process that the user knows, and ends this one with it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        return cls(process)

    def call(self, function: str, arguments: dict[str, Any], budget: Budget) -> Reply:
        call = {"function": function, "arguments": arguments, "seconds": budget.seconds}
        call |= {"memory_bytes": budget.memory_bytes, "reply_bytes": budget.reply_bytes}
        try:
            line = self._exchange(json.dumps(call, default=str).encode() + b"\n", budget)
        except BaseException:
            # An interrupt too: the reply that is still to come belongs to no later call.
            self.stop()
            raise
        reply = json.loads(line)
        if "over" in reply:
            raise OverBudgetError(reply["over"])
        if "error" in reply:
            raise CallError(reply["error"])
        return Reply(reply["value"], reply["seconds"])

    def _exchange(self, request: bytes, budget: Budget) -> bytes:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(budget) from None
        try:
            line = self.replies.get(timeout=_WALL_SECONDS + _WALL_FACTOR * budget.seconds)
        except queue.Empty:
            raise _too_long(budget) from None
        if not line:
            raise self._ended(budget)
        return line

    def _ended(self, budget: Budget) -> Exception:
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            return _too_long(budget)
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
