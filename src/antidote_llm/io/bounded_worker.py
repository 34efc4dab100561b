"""The process in which :mod:`antidote_llm.io.bounded_calls` calls functions: one call after the other, until its end.

It imports little, so that it starts in a moment. A call and its reply are one line of JSON each.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

_MOST_SAID = 1000


def main() -> None:
    """Answer calls until the other side closes the pipe."""
    # Whatever a library prints is no reply.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for line in sys.stdin:
        replies.write(json.dumps(_answer(json.loads(line))) + "\n")
        replies.flush()


def first_matches(patterns: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return for each name the place of the first pattern that matches all of it; -1 where none does."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return [next((place for place, each in enumerate(compiled) if each.fullmatch(name)), -1) for name in names]


def _answer(call: dict[str, Any]) -> dict[str, Any]:
    module, _, name = call["function"].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    _set_limit(resource.RLIMIT_CPU, int(time.process_time() + call["seconds"]) + 1)
    _limit_memory(call["memory_bytes"])
    start = time.process_time()
    try:
        reply: dict[str, Any] = {"value": function(**call["arguments"])}
        if len(json.dumps(reply)) > call["reply_bytes"]:
            reply = {"over": f"gives more than {call['reply_bytes']:,} characters"}
    except MemoryError:
        reply = {"over": f"needs more than {call['memory_bytes'] // 1_000_000} MB of memory"}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other side says it
        reply = {"error": _said(error)}
    finally:
        for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
            _set_limit(limit, resource.getrlimit(limit)[1])
    return {**reply, "seconds": time.process_time() - start}


def _said(error: Exception) -> str:
    """Return what an error says, at a length that one line can show; its name where it cannot say it."""
    try:
        return str(error)[:_MOST_SAID] or type(error).__name__
    except Exception:  # noqa: BLE001 - its words may need more memory than is left
        return type(error).__name__


def _set_limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _limit_memory(more_bytes: int) -> None:
    # Only Linux says so, and only Linux keeps to the limit.
    if (said := Path("/proc/self/statm")).is_file():
        taken = int(said.read_text().split()[0]) * resource.getpagesize()
        _set_limit(resource.RLIMIT_AS, taken + more_bytes)
