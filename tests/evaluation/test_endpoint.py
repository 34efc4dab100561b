"""A server is asked in parallel, failed requests are retried, and a final failure is one line."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import chain, repeat
from typing import Any

import pytest

from antidote_llm.errors import UserError
from antidote_llm.evaluation.endpoint import Endpoint, RetryPolicy, UnusableAnswerError
from tests.evaluation.raw_server import OK, sending
from tests.evaluation.server import Reply, last_turn, said, serving, status

QUICK = RetryPolicy(timeout_s=5, retries=3, first_wait_s=0.01)
ASKED = [{"role": "user", "content": "zob"}]


def chat(content: str) -> bytes:
    """Return the body of an answer, with content given as JSON."""
    return b'{"choices": [{"message": {"content": ' + content.encode() + b"}}]}"


# Replies without a usable answer.
ODD = {
    "half a surrogate pair": chat('"zob \\ud800"'),
    "raw half a surrogate pair": chat('"zob ~"').replace(b"~", b"\xed\xa0\x80"),
    "deep json": b"[" * 100_000,
    "deep json in its place": chat("[" * 50_000 + "]" * 50_000),
    "a number without an end": chat("9" * 5000),
    "no utf-8": chat('"~"').replace(b"~", b"\xff\xfe\xfa"),
    "a book": chat('"' + "zob " * 20_000 + '"'),
    "nothing": b"",
    "a page": b"<!doctype html><title>zob</title>",
    "a number": chat("5"),
    "parts": chat('[{"type": "text", "text": "zob"}]'),
    "an object": chat("{}"),
    "no message": b'{"choices": [{}]}',
    "choices that are no list": b'{"choices": 5}',
    "choices that are a text": b'{"choices": "zob"}',
    "a message that is a list": b'{"choices": [{"message": []}]}',
    "no number": b"NaN",
}
ODD_WAITS = (
    *("nan", "inf", "-inf", "-1", "1e400", "9" * 5000, "-" + "9" * 5000, "0x10", "1,5", ",", "\xff\xfe", " "),
    *("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "Mon, 01 Jan 2030 00:00:00 +9999999999999999"),
    *("Fri, 31 Dec 99999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 -0000"),
    *("Fri, 99 Zob 2020 99:99:99 GMT", "Fri, " + "9" * 5000),
)


def endpoint(url: str, **more: Any) -> Endpoint:
    return Endpoint(url, "judge-model", **{"retry_policy": QUICK, **more})


def first_then(first: Reply, times: int, then: Reply) -> Callable[[Any], Reply]:
    """Reply with errors some times, and then correctly."""
    left = [first] * times
    return lambda _: left.pop() if left else then


def test_a_conversation_and_a_text_are_completed_greedily() -> None:
    with serving(lambda body: said(last_turn(body).upper())) as server:
        asked = endpoint(server.url + "/", key="a key")
        assert asked.complete(ASKED, 7) == "ZOB"
        assert asked.complete("kad", 3, {"seed": 1}) == "KAD"
    (chat, chat_body, headers), (text, text_body, _) = server.asked
    assert (chat, text) == ("/v1/chat/completions", "/v1/completions")
    assert chat_body == {"model": "judge-model", "max_tokens": 7, "temperature": 0, "messages": ASKED}
    assert text_body == {"model": "judge-model", "max_tokens": 3, "temperature": 0, "prompt": "kad", "seed": 1}
    assert headers["Authorization"] == "Bearer a key"


def test_without_a_key_none_is_sent() -> None:
    with serving(lambda _: said("")) as server:
        assert endpoint(server.url).complete(ASKED, 1) == ""
    assert "Authorization" not in server.asked[0][2]


def test_requests_run_in_parallel_and_answers_keep_their_order() -> None:
    with serving(lambda body: said(last_turn(body))) as server:
        server.silent_s = 0.02
        texts, here = [str(number) for number in range(12)], threading.get_ident()
        seen: list[tuple[int, str]] = []

        def answered(place: int, text: str) -> None:
            assert threading.get_ident() == here
            seen.append((place, text))

        assert endpoint(server.url, concurrency=4).complete_all(texts, 1, answered) == texts
    assert sorted(seen) == [(place, text) for place, text in enumerate(texts)]
    assert 1 < server.most_at_once <= 4


@pytest.mark.parametrize(
    "bad",
    [
        status(429, "slow down", Retry_After="0.05"),
        status(500),
        status(503, "loading"),
        (200, b"{", {}),
        (200, b"[]", {}),
        (200, b'{"choices": []}', {}),
        (200, b'{"choices": [{"message": {"content": null}}]}', {}),
        (200, b'{"choices"', {"Content_Length": "99"}),
        *((200, body, {}) for body in ODD.values()),
        *(status(503, Retry_After=value) for value in ODD_WAITS),
    ],
    ids=["429", "500", "503", "no json", "a list", "no choice", "no text", "cut off", *ODD, *map(ascii, ODD_WAITS)],
)
def test_a_temporary_problem_is_retried(bad: Reply) -> None:
    policy = RetryPolicy(timeout_s=0.5, retries=3, first_wait_s=0.01)
    with serving(first_then(bad, 2, said("fine"))) as server:
        assert endpoint(server.url, retry_policy=policy).complete(ASKED, 1) == "fine"
    assert len(server.asked) == 3


def test_retry_after_is_respected() -> None:
    with serving(first_then(status(429, Retry_After="0.3"), 1, said("fine"))) as server:
        start = time.monotonic()
        endpoint(server.url).complete(ASKED, 1)
        assert time.monotonic() - start >= 0.3
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
    with serving(first_then(status(429, Retry_After=soon), 1, said("fine"))) as server:
        start = time.monotonic()
        endpoint(server.url).complete(ASKED, 1)
        assert time.monotonic() - start >= 0.5
    for none in ("Wed, 21 Oct 2020 07:28:00 GMT", "-5", "nan", "later", "a, b"):
        with serving(first_then(status(429, Retry_After=none), 1, said("fine"))) as server:
            assert endpoint(server.url).complete(ASKED, 1) == "fine"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (status(429, "slow\ndown"), "chat/completions: status 429 (slow down), 4 times"),
        ((200, b"<html>", {}), "the answer is not JSON, 4 times"),
        ((200, b'{"error": "x"}', {}), "JSON, but not of OpenAI's form, 4 times"),
    ],
)
def test_a_lasting_problem_ends_in_one_line(bad: Reply, words: str) -> None:
    with serving(lambda _: bad) as server, pytest.raises(UserError) as caught:
        endpoint(server.url, key="secret").complete(ASKED, 1)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_silent_server_times_out() -> None:
    policy = RetryPolicy(timeout_s=0.1, retries=1, first_wait_s=0.01)
    with serving(lambda _: said("late")) as server:
        server.silent_s = 0.4
        with pytest.raises(UserError, match=r"no answer within 0\.1 seconds, 2 times"):
            endpoint(server.url, retry_policy=policy).complete(ASKED, 1)
    assert len(server.asked) == 2


def test_a_server_that_is_down_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}/v1.*cannot be reached.*, 4 times"):
        endpoint(f"http://127.0.0.1:{port}/v1").complete(ASKED, 1)


@pytest.mark.parametrize(
    ("code", "fix"), [(401, "ANTIDOTE_ENDPOINT_KEY"), (404, "the model's name"), (400, "check the address")]
)
def test_a_refused_request_is_not_sent_again(code: int, fix: str) -> None:
    wanted = pytest.raises(UserError, match=rf"status {code} \(no such thing\).*{fix}")
    with serving(lambda _: status(code, "no such thing")) as server, wanted:
        endpoint(server.url).complete(ASKED, 1)
    assert len(server.asked) == 1


def test_a_redirect_does_not_receive_the_key() -> None:
    def moved(_: Any) -> Reply:
        return 302, b"", {"Location": other.url}

    with serving(lambda _: said("stolen")) as other, serving(moved) as server:
        with pytest.raises(UserError, match="status 302"):
            endpoint(server.url, key="secret").complete(ASKED, 1)
        assert other.asked == []


def test_answers_before_a_failure_are_passed_on() -> None:
    def reply(body: Any) -> Reply:
        return status(400) if last_turn(body) == "5" else said(last_turn(body))

    kept: dict[int, str] = {}
    with serving(reply) as server, pytest.raises(UserError, match="status 400"):
        server.silent_s = 0.01
        endpoint(server.url, concurrency=2).complete_all([str(n) for n in range(99)], 1, kept.__setitem__)
    assert {0, 1, 2, 3} <= kept.keys()
    assert all(text == str(place) for place, text in kept.items())
    # Running requests are completed, and no others are sent.
    assert len(kept) == len(server.asked) - 1 < 50


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "gpt", "http://[::1/v1", "http://h:x/v1", "http://a b/v1"]
)
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="not the address of a server"):
        Endpoint(url, "m")


@pytest.mark.parametrize("url", ["http://me:hidden@host/v1", "me:hidden@host/v1", "http://host/v1?key=hidden"])
def test_a_secret_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    for named in (url, f"{url}#m"):
        with pytest.raises(UserError, match="ANTIDOTE_ENDPOINT_KEY") as caught:
            Endpoint.named(named, "--endpoint ")
        assert "hidden" not in str(caught.value)


def test_the_key_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTIDOTE_ENDPOINT_KEY", "secret\n")
    wanted = pytest.raises(UserError, match=r"\(no such key: \[key\]\)")
    with serving(lambda _: status(401, "no such key: secret")) as server, wanted as caught:
        Endpoint.named(f"{server.url}#m", "").complete(ASKED, 1)
    assert server.asked[0][2]["Authorization"] == "Bearer secret"
    assert "secret" not in str(caught.value)
    for key in ("secret\nX-More: 1", "secr\N{LATIN SMALL LETTER E WITH ACUTE}t"):
        with pytest.raises(UserError, match="cannot be sent") as caught:
            endpoint(server.url, key=key)
        assert "secr" not in str(caught.value)


def test_content_may_be_missing_after_a_thought_or_in_a_refusal() -> None:
    def choice(content: str | None, reason: str, **more: str) -> Reply:
        message = {"content": content, **more}
        return 200, json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode(), {}

    replies = [choice(None, "length", reasoning_content="zob"), choice(None, "stop", refusal="I cannot zob.")]
    with serving(lambda _: replies.pop(0)) as server:
        assert [endpoint(server.url).complete(ASKED, 1) for _ in range(2)] == ["", "I cannot zob."]


def test_no_retry_waits_after_a_final_failure() -> None:
    def reply(body: Any) -> Reply:
        return status(400) if last_turn(body) == "1" else status(503, Retry_After="30")

    with serving(reply) as server, pytest.raises(UserError, match="status 400"):
        start = time.monotonic()
        endpoint(server.url, concurrency=2).complete_all([str(n) for n in range(9)], 1)
    assert time.monotonic() - start < 15


def test_an_unusable_answer_in_every_retry_has_its_own_error_class() -> None:
    for body in ODD.values():
        with serving(lambda _, body=body: (200, body, {})) as server, pytest.raises(UnusableAnswerError) as caught:  # type: ignore[misc]
            endpoint(server.url).complete(ASKED, 1)
        assert "4 times" in str(caught.value) and "\n" not in str(caught.value)
    with serving(lambda _: status(503)) as server, pytest.raises(UserError) as caught_busy:
        endpoint(server.url).complete(ASKED, 1)
    assert not isinstance(caught_busy.value, UnusableAnswerError)


def test_a_byte_order_mark_before_the_json_is_ignored() -> None:
    with serving(lambda _: (200, b"\xef\xbb\xbf" + chat('"zob\\u0007"'), {})) as server:
        assert endpoint(server.url).complete(ASKED, 1) == "zob\a"


def test_one_unusable_answer_is_one_failure_and_eight_in_a_row_end_the_run() -> None:
    def reply(body: Any) -> Reply:
        return (200, ODD["deep json"], {}) if int(last_turn(body)) in odd else said(last_turn(body))

    texts, failed, kept = [str(number) for number in range(20)], dict[int, UnusableAnswerError](), dict[int, str]()
    odd = {5, 11}
    with serving(reply) as server:
        asked = endpoint(server.url, concurrency=2, retry_policy=RetryPolicy(retries=1, first_wait_s=0.001))
        found = asked.complete_all(texts, 1, kept.__setitem__, failed=failed.__setitem__)
        assert found == ["" if place in odd else text for place, text in enumerate(texts)]
        assert failed.keys() == odd and kept.keys() == {*range(20)} - odd
        with pytest.raises(UnusableAnswerError, match="not JSON, 2 times"):
            asked.complete_all(texts, 1)
        odd = {*range(20)}
        before = len(server.asked)
        with pytest.raises(UnusableAnswerError):
            asked.complete_all(texts, 1, failed=failed.__setitem__)
        assert len(server.asked) - before < 2 * 12


KEY = "sk-Zorb1k-4Tw9mAd7RunKad0"


@pytest.mark.parametrize(
    "reply",
    [
        status(400, f"no such key: {KEY} zob"),
        status(503, f"no such key: {KEY[:12]} and {KEY[12:]} zob"),
        # At the end of the shown part it is masked before the message is shortened.
        *(status(400, "z" * count + KEY) for count in range(140, 160, 3)),
        status(400, "".join(f"%{ord(each):02x}" for each in KEY) + " zob"),
        status(401, "\x1b[31m" + "\n".join(KEY)),
    ],
)
def test_a_key_that_is_repeated_in_an_error_is_hidden(reply: Reply) -> None:
    with serving(lambda _: reply) as server, pytest.raises(UserError) as caught:
        endpoint(server.url, key=KEY).complete(ASKED, 1)
    line = str(caught.value).partition("status")[2]
    assert "[ke" in line or line.count("z") > 100
    left = "".join(filter(str.isalnum, line))
    assert not any("".join(filter(str.isalnum, KEY))[at : at + 5] in left for at in range(12))
    assert line.isprintable()


def test_a_key_that_is_repeated_as_a_status_line_is_hidden() -> None:
    with sending(lambda: [f"{KEY}\r\n".encode()]) as server, pytest.raises(UserError) as caught:
        endpoint(server.url, key=KEY).complete(ASKED, 1)
    assert KEY not in str(caught.value) and "[key]" in str(caught.value)


def test_a_key_that_is_repeated_in_an_answer_is_hidden() -> None:
    with serving(lambda _: said(f"zob {KEY}, {' '.join(KEY)} run")) as server:
        assert endpoint(server.url, key=KEY).complete(ASKED, 1) == "zob [key], [key] run"
        assert KEY in endpoint(server.url).complete(ASKED, 1)


def test_a_key_of_another_server_is_not_sent_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda _: status(401, "who?")) as server, pytest.raises(UserError) as caught:
        with caplog.at_level(logging.WARNING):
            asked = Endpoint.named(f"{server.url}#m", "")
        asked.complete(ASKED, 1)
    assert "Authorization" not in server.asked[0][2]
    (record,) = caplog.records
    for line in (record.getMessage(), str(caught.value)):
        assert "OPENAI_API_KEY is for https://api.openai.com and is not sent to http://127.0.0.1" in line
    assert f"ANTIDOTE_ENDPOINT_URL to {server.url.removesuffix('/v1')}" in str(caught.value)


def test_a_key_is_not_sent_unencrypted() -> None:
    with pytest.raises(UserError, match="only over https or to this machine"):
        Endpoint("http://models.example/v1", "m", key=KEY)
    assert Endpoint("https://models.example/v1", "m", key=KEY).url == "https://models.example/v1"


def test_an_interrupt_cancels_running_requests() -> None:
    # A background shell may ignore this signal from the start.
    before_it = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt_what_is_under_way()
    finally:
        signal.signal(signal.SIGINT, before_it)


def _interrupt_what_is_under_way() -> None:
    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before, start = threading.active_count(), time.monotonic()
    with sending(lambda: chain([OK + b"\r\n"], repeat(b" ")), every_s=0.02) as server:
        timer = threading.Timer(0.3, interrupt)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            endpoint(server.url, retry_policy=RetryPolicy(timeout_s=60, retries=0)).complete_all(["zob"] * 20, 1)
        timer.join()
    assert time.monotonic() - start < 30
    while threading.active_count() > before and time.monotonic() - start < 30:
        time.sleep(0.01)
    assert threading.active_count() <= before
