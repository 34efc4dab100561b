"""A request is limited in time and size, whatever the server sends, and another thread can cancel it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from itertools import chain, repeat

import pytest

from antidote_llm.evaluation.http_post import MOST_ERROR_BYTES, NoReplyError, Post
from tests.evaluation.raw_server import OK, Pieces, sending

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

# Replies that arrive piece by piece: no single wait for a byte is long.
SLOW: dict[str, Callable[[], Pieces]] = {
    "body": lambda: chain([OK + b"\r\n"], repeat(b" ")),
    "body after a whole answer": lambda: chain([OK + b"\r\n{}"], repeat(b" ")),
    "body of a stated length": lambda: chain([OK + b"Content-Length: 9999\r\n\r\n"], repeat(b" ")),
    "status line": lambda: chain([b"HTTP/1.1 200 "], repeat(b"O")),
    "headers": lambda: chain([OK], repeat(b"X: 1\r\n")),
    "one header": lambda: chain([OK + b"X: "], repeat(b"1")),
    "continue": lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunks": lambda: chain([CHUNKED], repeat(b"1\r\n \r\n")),
    "chunk size": lambda: chain([CHUNKED], repeat(b"0")),
    "trailers": lambda: chain([CHUNKED + b"0\r\n"], repeat(b"X: 1\r\n")),
    "error": lambda: chain([b"HTTP/1.1 400 Bad\r\n\r\n"], repeat(b" ")),
    "silence": lambda: repeat(b""),
}
MEBIBYTE = b" " * 2**20
ENDLESS: dict[str, Callable[[], Pieces]] = {
    "body": lambda: chain([OK + b"\r\n"], repeat(MEBIBYTE)),
    "body of a stated length": lambda: chain([OK + b"Content-Length: 9999999999999\r\n\r\n"], repeat(MEBIBYTE)),
    "chunks": lambda: chain([CHUNKED], repeat(b"100000\r\n" + MEBIBYTE + b"\r\n")),
    "chunk of no size": lambda: chain([CHUNKED + b"-1\r\n"], repeat(MEBIBYTE)),
    "trailers": lambda: chain([CHUNKED + b"0\r\n"], repeat(b"X: 1\r\n" * 2**16)),
    "continue": lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 2**14),
}
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "no http": b"zorbik\r\n",
    "old http": b"<html>zorbik</html>",
    "another version": b"HTTP/9.9 200 OK\r\n\r\n",
    "a status of no number": b"HTTP/1.1 zob OK\r\n\r\n",
    "a long status line": b"HTTP/1.1 200 " + b"O" * 2**17,
    "many headers": OK + b"X: 1\r\n" * 300 + b"\r\n",
    "cut off": OK + b"Content-Length: 99\r\n\r\n{}",
    "a cut chunk": CHUNKED + b"ff\r\n{}",
    "a chunk size of no number": CHUNKED + b"zob\r\n{}",
}


def send(url: str, timeout_s: float = 5.0, most_bytes: int = 2**22) -> bytes:
    return Post(timeout_s, most_bytes).send(url, b"{}", {}, proxies=False).body


@pytest.mark.parametrize("case", SLOW)
def test_a_slow_reply_is_limited_in_time(case: str) -> None:
    start = time.monotonic()
    with sending(SLOW[case], every_s=0.02) as server, pytest.raises(NoReplyError, match=r"within 0\.3 seconds"):
        send(server.url, timeout_s=0.3)
    assert 0.2 < time.monotonic() - start < 2


@pytest.mark.parametrize("case", ENDLESS)
def test_an_endless_reply_is_limited_in_size(case: str) -> None:
    with sending(ENDLESS[case]) as server, pytest.raises(NoReplyError, match="longer than 2 MiB"):
        send(server.url, most_bytes=2**21)
    # The kernel's buffers count as sent.
    assert server.sent < 2**25


def test_the_body_of_an_error_is_limited() -> None:
    with sending(lambda: chain([b"HTTP/1.1 500 Zob\r\n\r\n"], repeat(MEBIBYTE))) as server:
        reply = Post(5.0).send(server.url, b"{}", {}, proxies=False)
    assert (reply.status, len(reply.body)) == (500, MOST_ERROR_BYTES)


@pytest.mark.parametrize("case", BROKEN)
def test_an_unusable_reply_is_a_one_line_error(case: str) -> None:
    with sending(lambda: [BROKEN[case]]) as server, pytest.raises(NoReplyError) as caught:
        send(server.url)
    assert "\n" not in str(caught.value)
    # Only a connection closed without a byte is no reply; all others may be usable at the next try.
    assert caught.value.begun == (case != "nothing")


@pytest.mark.parametrize("location", [b"http://127.0.0.1:1/", b"http://[", b"file:///etc/hostname", b"/v1"])
def test_redirects_are_not_followed(location: bytes) -> None:
    with sending(lambda: [b"HTTP/1.1 307 Zob\r\nLocation: " + location + b"\r\n\r\n"]) as server:
        assert Post(5.0).send(server.url, b"{}", {}, proxies=False).status == 307
    assert len(server.asked) == 1


def test_a_handshake_is_limited_in_time() -> None:
    start = time.monotonic()
    with sending(lambda: repeat(b"\x16"), every_s=0.02) as server, pytest.raises(NoReplyError):
        send(server.url.replace("http:", "https:"), timeout_s=0.3)
    assert time.monotonic() - start < 2


def test_https_to_a_server_without_it_is_not_retried() -> None:
    with sending(lambda: [OK]) as server, pytest.raises(NoReplyError) as caught:
        send(server.url.replace("http:", "https:"))
    assert caught.value.final


def test_another_thread_cancels_it() -> None:
    post, start = Post(30.0), time.monotonic()
    with sending(SLOW["body"], every_s=0.02) as server:
        threading.Timer(0.1, post.cancel).start()
        with pytest.raises(NoReplyError):
            post.send(server.url, b"{}", {}, proxies=False)
    assert time.monotonic() - start < 5


def test_a_cancelled_request_is_not_sent() -> None:
    post = Post(30.0)
    post.cancel()
    with sending(lambda: [OK]) as server, pytest.raises(NoReplyError):
        post.send(server.url, b"{}", {}, proxies=False)
    assert not server.asked


def test_no_connection_is_left_open() -> None:
    with sending(lambda: [OK + b"Content-Length: 2\r\n\r\n{}"]) as server:
        post = Post(5.0)
        assert post.send(server.url, b"{}", {}, proxies=False).body == b"{}"
    held: socket.socket | None = post._socket
    assert held is None
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
