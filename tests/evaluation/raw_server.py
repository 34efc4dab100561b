"""A server on this machine that sends given bytes, HTTP or not, until its client disconnects."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

Pieces: TypeAlias = Iterable[bytes]

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass
class RawServer:
    """Its address, and what it received.

    Attributes:
        port: Where it is.
        asked: The first bytes of each request.
        sent: How many bytes it could send in all.
    """

    port: int
    asked: list[bytes] = field(default_factory=list)
    sent: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def sending(pieces: Callable[[], Pieces], every_s: float = 0.0) -> Iterator[RawServer]:
    """Send the pieces to every client, one each so many seconds, and close the connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        server, over = RawServer(listening.getsockname()[1]), threading.Event()

        def answer(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.settimeout(5)
                server.asked.append(connection.recv(2**16))
                for piece in pieces():
                    if over.is_set():
                        return
                    connection.sendall(piece)
                    server.sent += len(piece)
                    time.sleep(every_s)
                # Closing with unread bytes would reset the connection.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass

        def accept() -> None:
            while not over.is_set():
                with suppress(OSError):
                    connection, _ = listening.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        listening.settimeout(0.05)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            over.set()
            thread.join()
