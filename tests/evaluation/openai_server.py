"""A server of OpenAI's chat completions that fails on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class Serving:
    """What a server does.

    Attributes:
        reply: Says what it answers to a request.
        statuses: Status of each of the first requests; 200 for all that follow.
        down_after: How many requests it answers before it hangs up on all others; None for no end.
        seen: Every request that was answered.
    """

    reply: Callable[[Body], str] = lambda body: f"answer to {body['messages'][-1]['content']}"
    statuses: list[int] = field(default_factory=list)
    down_after: int | None = None
    seen: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(does: Serving) -> Iterator[Serving]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with does.lock:
                status = does.statuses.pop(0) if does.statuses else 200
                down = does.down_after is not None and len(does.seen) >= does.down_after
                if status == 200 and not down:
                    does.seen.append(body)
                    does.keys.append(self.headers.get("Authorization"))
            if down:
                self.close_connection = True
                return
            content = {"error": {"message": "slow down"}}
            if status == 200:
                content = {"choices": [{"message": {"role": "assistant", "content": does.reply(body)}}]}  # type: ignore[dict-item]
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    does.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield does
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
