"""One POST request, limited in time and size, that another thread can cancel.

The timeouts of Python's sockets are per read: a server that sends a byte a second never triggers one. Here a timer
shuts the connection down at any point: during the handshake, the headers or the body.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from functools import partial
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from antidote_llm.errors import first_line

MOST_ANSWER_BYTES = 4 * 2**20
MOST_ERROR_BYTES = 2**16
_PIECE_BYTES = 2**16
# Errors that a retry cannot fix: the server does not speak https.
_FINAL_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL")


class NoReplyError(Exception):
    """A request without a usable reply.

    Attributes:
        begun: Whether the server had begun to reply.
        final: Whether a retry cannot help.
    """

    def __init__(self, problem: str, *, begun: bool = False, final: bool = False) -> None:
        super().__init__(problem)
        self.begun, self.final = begun, final


class _TooLongError(Exception):
    """The reply has more bytes than are allowed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply."""

    status: int
    headers: Message
    body: bytes


class Post:
    """One running request.

    Args:
        timeout_s: Seconds from now until the reply must be complete.
        most_bytes: Most bytes of the reply, headers included.
    """

    def __init__(self, timeout_s: float, most_bytes: int = MOST_ANSWER_BYTES) -> None:
        self._timeout_s, self._most_bytes, self._taken = timeout_s, most_bytes, 0
        self._end_s = time.monotonic() + timeout_s
        self._lock, self._is_cancelled = threading.Lock(), False
        self._socket: socket.socket | None = None

    def send(self, url: str, body: bytes, headers: Mapping[str, str], *, proxies: bool = True) -> Reply:
        """Send it and return the reply, whatever its status; redirects are not followed.

        Args:
            url: An http or https address.
            body: The body.
            headers: The headers.
            proxies: Whether to use the environment's proxies.

        Raises:
            NoReplyError: The server cannot be reached, or its reply is too late, too long or incomplete.
        """
        opener = OpenerDirector()
        for handler in (ProxyHandler(None if proxies else {}), _Plain(self), _Encrypted(self)):
            opener.add_handler(handler)
        timer = threading.Timer(self._timeout_s, self.cancel)
        timer.daemon = True
        timer.start()
        response: http.client.HTTPResponse | None = None
        try:
            response = opener.open(Request(url, body, dict(headers), method="POST"), timeout=self._timeout_s)
            with response:
                return Reply(response.status, response.headers, self._body(response))
        except _TooLongError as error:
            raise NoReplyError(f"the answer is longer than {self._most_bytes / 2**20:g} MiB", begun=True) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failure(error, begun=response is not None) from error
        finally:
            timer.cancel()
            self._release()

    def cancel(self) -> None:
        """Cancel it, from any thread."""
        with self._lock:
            self._is_cancelled = True
            if self._socket is not None:
                # It may be closed already.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def connect(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """Connect to the first address of a host that answers."""
        problem: OSError = TimeoutError("timed out")
        for family, kind, protocol, _name, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                self._hold(connection)
                connection.settimeout(self._left_s())
                connection.connect(place)
                connection.settimeout(self._left_s())
            except OSError as error:
                connection.close()
                problem = error
            else:
                return connection
        raise problem

    def take(self, count: int) -> None:
        """Count bytes of the reply.

        Raises:
            _TooLongError: There are too many.
        """
        self._taken += count
        if self._taken > self._most_bytes:
            raise _TooLongError

    def _hold(self, connection: socket.socket) -> None:
        """Keep a duplicate of a connection's handle: TLS detaches the original."""
        self._release()
        with self._lock:
            if self._is_cancelled:
                raise TimeoutError("timed out")
            self._socket = connection.dup()

    def _release(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _left_s(self) -> float:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        return left_s

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        most = self._most_bytes if response.status // 100 == 2 else MOST_ERROR_BYTES
        found = bytearray()
        while len(found) < most and (piece := response.read(min(_PIECE_BYTES, most - len(found)))):
            found += piece
        if self._is_cancelled:
            # Without a stated length, a cancelled body looks like a complete one.
            raise TimeoutError("timed out")
        if response.length and len(found) < most:
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(found)

    def _failure(self, error: Exception, *, begun: bool) -> NoReplyError:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError) or time.monotonic() >= self._end_s:
            what = "no complete answer" if begun else "no answer"
            return NoReplyError(f"{what} within {self._timeout_s:g} seconds", begun=begun)
        if isinstance(reason, http.client.IncompleteRead):
            return NoReplyError("the answer is cut off", begun=True)
        reason_text = first_line(reason) if isinstance(reason, Exception) else str(reason)
        if isinstance(reason, http.client.HTTPException) and not isinstance(reason, OSError):
            return NoReplyError(f"the answer is not HTTP ({reason_text or type(reason).__name__})", begun=True)
        final = isinstance(reason, ssl.SSLCertVerificationError) or (
            isinstance(reason, ssl.SSLError) and reason.reason in _FINAL_TLS
        )
        if begun:
            return NoReplyError(
                f"the connection broke during the answer ({reason_text or type(reason).__name__})", begun=True
            )
        return NoReplyError(f"cannot be reached ({reason_text or type(reason).__name__})", final=final)


class _CountedStream(io.RawIOBase):
    """The bytes of a reply, counted as they arrive, including headers, chunk sizes and trailers."""

    def __init__(self, stream: io.BufferedReader, post: Post) -> None:
        super().__init__()
        self._stream, self._post = stream, post

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._stream.read1(len(buffer))
        self._post.take(len(found))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _responses(post: Post) -> type[http.client.HTTPResponse]:
    """Return a class of responses whose bytes are counted by a request."""

    class Response(http.client.HTTPResponse):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.fp = io.BufferedReader(_CountedStream(self.fp, post))

    return Response


class _Connection(http.client.HTTPConnection):
    """Uses two undocumented names of http.client: ``_create_connection`` and ``response_class``."""

    def __init__(self, host: str, *, post: Post, **named: Any) -> None:
        super().__init__(host, **named)
        self._create_connection = post.connect
        self.response_class = _responses(post)


class _EncryptedConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, post: Post, **named: Any) -> None:
        super().__init__(host, **named)
        self._create_connection = post.connect
        self.response_class = _responses(post)


class _Plain(HTTPHandler):
    def __init__(self, post: Post) -> None:
        super().__init__()
        self._post = post

    def http_open(self, request: Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Connection, post=self._post), request)


class _Encrypted(HTTPSHandler):
    def __init__(self, post: Post) -> None:
        super().__init__()
        self._post = post

    def https_open(self, request: Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_EncryptedConnection, post=self._post), request)
