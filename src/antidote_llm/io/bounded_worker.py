"""The process in which :mod:`antidote_llm.io.bounded_calls` calls functions, one call after the other.

It imports little, so that it starts quickly. A request is one line of JSON, and so is the reply to each of its calls.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

_MOST_CHARACTERS = 1000


def main() -> None:
    """Answer calls until the other side closes the pipe."""
    # Output that a library prints must not be read as a reply.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for line in sys.stdin:
        for reply in _replies(json.loads(line)):
            replies.write(json.dumps(reply) + "\n")
            # Each at once: a call that kills this process must not lose earlier replies.
            replies.flush()


def first_matches(patterns: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return for each name the index of the first pattern that matches all of it; -1 where none does."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return [next((index for index, each in enumerate(compiled) if each.fullmatch(name)), -1) for name in names]


def _replies(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Make the calls of a request one after the other, up to the first that takes too much."""
    module, _, name = request["function"].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    left = request["seconds_left"]
    for arguments, reply_bytes in zip(request["calls"], request["reply_bytes"], strict=True):
        if left <= 0:
            yield {"over": "takes too long, row for row"}
            return
        _set_limit(resource.RLIMIT_CPU, int(time.process_time() + left) + 1)
        _limit_memory(request["memory_bytes"])
        start = time.process_time()
        try:
            reply: dict[str, Any] = {"value": function(**request["shared"], **arguments)}
            if len(json.dumps(reply)) > reply_bytes:
                reply = {"over": f"gives more than {reply_bytes:,} characters"}
        except MemoryError:
            reply = {"over": f"needs more than {request['memory_bytes'] // 1_000_000} MB of memory"}
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller's process reports it
            reply = {"error": _text(error)}
        finally:
            for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
                _set_limit(limit, resource.getrlimit(limit)[1])
        left = min(request["seconds"], left + request["seconds_each"] - (time.process_time() - start))
        yield {**reply, "seconds_left": left}
        if "over" in reply:
            return


def _text(error: Exception) -> str:
    """Return an error's text, cut to fit one line; its type's name where the text cannot be made."""
    try:
        return str(error)[:_MOST_CHARACTERS] or type(error).__name__
    except Exception:  # noqa: BLE001 - the text may need more memory than is left
        return type(error).__name__


def _set_limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _limit_memory(more_bytes: int) -> None:
    # Linux only: elsewhere this file does not exist, and the limit is not enforced.
    if (statm := Path("/proc/self/statm")).is_file():
        held_bytes = int(statm.read_text().split()[0]) * resource.getpagesize()
        _set_limit(resource.RLIMIT_AS, held_bytes + more_bytes)
