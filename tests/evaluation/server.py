"""A real HTTP server on this machine that speaks the OpenAI protocol, well or badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

Reply: TypeAlias = "tuple[int, bytes, dict[str, str]]"


@dataclass
class Server:
    """What a test configures, and what the server received.

    Attributes:
        reply: Makes the reply to a request: status, body, headers.
        asked: The path, the body and the headers of each request.
        silent_s: Seconds before the server replies.
        most_at_once: How many requests were under way at the same time at most.
    """

    reply: Callable[[Any], Reply]
    asked: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)
    silent_s: float = 0.0
    most_at_once: int = 0
    port: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def enter(self, path: str, body: Any, headers: dict[str, str]) -> None:
        with self._lock:
            self.asked.append((path, body, headers))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self.silent_s)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1


def said(text: str) -> Reply:
    """A proper answer, as both kinds of completion."""
    return 200, json.dumps({"choices": [{"message": {"content": text}, "text": text}]}).encode(), {}


def status(code: int, message: str = "", **headers: str) -> Reply:
    """An error."""
    return code, json.dumps({"error": {"message": message}}).encode(), headers


def last_turn(body: Any) -> str:
    """Return the last turn of a request."""
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


@contextmanager
def serving(reply: Callable[[Any], Reply]) -> Iterator[Server]:
    """Run a server until the block ends."""
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.enter(self.path, body, dict(self.headers))
            try:
                code, content, headers = server.reply(body)
            finally:
                # A client that has its answer may send the next request before this thread continues.
                server.leave()
            try:
                self.send_response(code)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
