"""A client of OpenAI-compatible servers: parallel requests, retries, and one clear error where they fail."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NoReturn, TypeAlias

from antidote_llm.data.conversations import require_text
from antidote_llm.errors import UserError
from antidote_llm.evaluation.endpoint_keys import KEY_VARIABLE, Mask, Origin, advice, key_for, require_no_secret
from antidote_llm.evaluation.http_post import NoReplyError, Post, Reply
from antidote_llm.io.strict_json import is_utf8

Messages: TypeAlias = Sequence[Mapping[str, str]]
Answered: TypeAlias = Callable[[int, str], None]
Failed: TypeAlias = "Callable[[int, UnusableAnswerError], None]"

_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LONGEST_WAIT_S = 60.0
_SHOWN_CHARACTERS = 160
# A server may ignore max_tokens, but an answer must end somewhere.
_MOST_CHARACTERS, _MOST_CHARACTERS_A_TOKEN = 1 << 16, 64
# After so many requests in a row without a usable answer the server is at fault, not the prompts.
_MOST_FAILED_IN_A_ROW = 8
_KEPT = "the answers so far are kept: check the server and run again"
_log = logging.getLogger(__name__)


class UnusableAnswerError(UserError):
    """A server replied to one request, in every retry, without a usable answer: ``reason`` says how it replied."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: {_KEPT}")
        self.reason = reason


class _TryAgainError(Exception):
    """A problem that may be temporary: a busy server, a lost connection, a reply that is not JSON.

    Attributes:
        wait_s: Seconds to wait before the next try; None for the policy's own.
        is_answer: Whether the server did reply, but without a usable answer.
    """

    def __init__(self, problem: str, wait_s: float | None = None, *, is_answer: bool = False) -> None:
        super().__init__(problem)
        self.wait_s, self.is_answer = wait_s, is_answer


class Failures:
    """Collects the requests without a usable answer, and warns of them in one line."""

    def __init__(self) -> None:
        self.errors: dict[int, UnusableAnswerError] = {}

    def __call__(self, place: int, error: UnusableAnswerError) -> None:
        """Record the place of a request and why it failed."""
        self.errors[place] = error

    def warn(self, of: str, consequence: str) -> None:
        """Log a warning if any request failed, such as "2 of 7 prompts failed and count as lost"."""
        if self.errors:
            _log.warning(
                "%d of %s failed and %s: %s", len(self.errors), of, consequence, next(iter(self.errors.values())).reason
            )


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to wait for a server, and how often to try again.

    Attributes:
        timeout_s: Seconds after which a request without a complete answer is given up.
        retries: How many times a request is sent again; the wait doubles each time (exponential backoff).
        first_wait_s: Seconds before the first retry, unless the server names a time.
    """

    timeout_s: float = 120.0
    retries: int = 5
    first_wait_s: float = 1.0


class Endpoint:
    """One model on an OpenAI-compatible server.

    Args:
        url: The base, up to and including ``/v1``.
        model: The model's name there.
        key: Sent as a bearer token; never written anywhere.
        retry_policy: How long to wait, and how often to try again.
        concurrency: Most requests at once.

    Raises:
        UserError: The address is not an http or https address, or holds a password, or the key cannot be sent there.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        retry_policy: RetryPolicy | None = None,
        concurrency: int = 8,
    ) -> None:
        require_no_secret(url)
        self._origin = _origin(url)
        self.url, self.model = url.rstrip("/"), model
        self._key, self._retry_policy, self._concurrency = _sendable(key), retry_policy or RetryPolicy(), concurrency
        if self._key is not None and not self._origin.takes_keys:
            raise UserError(f"{self.url}: {advice(self._origin)}")
        self._withheld: str | None = None
        self._mask = Mask(self._key)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._posts: set[Post] = set()

    @classmethod
    def named(cls, text: str, option: str) -> Endpoint:
        """Return the endpoint that ``URL#MODEL`` names, with the key in the environment that belongs to it.

        A key that belongs to another server is not sent, and a warning says so.

        Args:
            text: ``URL#MODEL``.
            option: The setting that it comes from, for messages.

        Raises:
            UserError: No model is named, or the address is not one.
        """
        url, _, model = text.partition("#")
        require_no_secret(url)
        if not url or not model:
            raise UserError(
                f"{option}{text}: name the address and the model, as in {option}http://localhost:8000/v1#my-model"
            )
        require_text(model, f"{option}{url}: the model's name")
        found = key_for(_origin(url), os.environ)
        endpoint = cls(url, model, key=found.key)
        endpoint._withheld = found.withheld
        if found.withheld is not None:
            _log.warning("%s", found.withheld)
        return endpoint

    def complete(self, messages: Messages | str, max_tokens: int, extra: Mapping[str, Any] | None = None) -> str:
        """Return the greedy answer to a conversation, or the continuation of a text.

        Args:
            messages: Turns with ``role`` and ``content`` for ``/chat/completions``, or a text for ``/completions``.
            max_tokens: Most tokens of the answer.
            extra: Further fields of the request.

        Raises:
            UserError: The server refuses, or does not give an answer within all retries.
        """
        asked: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": 0, **(extra or {})}
        most = max(_MOST_CHARACTERS, _MOST_CHARACTERS_A_TOKEN * max_tokens)
        if isinstance(messages, str):
            parse = partial(_parse_completion, most=most)
            return self._ask("completions", {**asked, "prompt": messages}, parse)
        turns = [dict(message) for message in messages]
        return self._ask("chat/completions", {**asked, "messages": turns}, partial(_parse_chat, most=most))

    def complete_all(
        self,
        asked: Sequence[Messages | str],
        max_tokens: int,
        answered: Answered | None = None,
        extra: Mapping[str, Any] | None = None,
        failed: Failed | None = None,
    ) -> list[str]:
        """Answer many conversations or texts, several at once.

        Args:
            asked: As for :meth:`complete`.
            max_tokens: Most tokens of each answer.
            answered: Called in this thread with the index and the text of each answer as it arrives, so that no answer
                is lost where a later one fails.
            extra: As for :meth:`complete`.
            failed: Called in this thread with the index of each request without a usable answer, and the error; its
                text is empty. Without this callback the first such request raises its error, as do eight in a row
                in any case.

        Raises:
            UserError: As :meth:`complete`. Running requests are waited for, and no more are sent.
        """
        found: dict[int, str] = {}
        in_a_row = 0
        self._stopped.clear()
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = {pool.submit(self.complete, each, max_tokens, extra): place for place, each in enumerate(asked)}
            try:
                for future in as_completed(futures):
                    place = futures[future]
                    try:
                        found[place], in_a_row = future.result(), 0
                    except UnusableAnswerError as error:
                        in_a_row += 1
                        if failed is None or in_a_row == _MOST_FAILED_IN_A_ROW:
                            raise
                        found[place] = ""
                        failed(place, error)
                        continue
                    if answered is not None:
                        answered(place, found[place])
            except BaseException as error:
                self._stopped.set()
                if not isinstance(error, Exception):
                    self._cancel_running()
                self._finish(pool, futures, found, answered)
                raise
        return [found[place] for place in range(len(asked))]

    @staticmethod
    def _finish(
        pool: ThreadPoolExecutor, futures: Mapping[Future[str], int], found: dict[int, str], answered: Answered | None
    ) -> None:
        """Send no more requests, and pass on the answers of those that are running."""
        pool.shutdown(wait=True, cancel_futures=True)
        for future, place in futures.items():
            has_answer = future.done() and not future.cancelled() and future.exception() is None
            if has_answer and place not in found and answered is not None:
                answered(place, future.result())

    def _cancel_running(self) -> None:
        """End the running requests at once, after an interrupt by the user."""
        with self._lock:
            for post in self._posts:
                post.cancel()

    def _ask(self, path: str, asked: Mapping[str, Any], parse: Callable[[Any], str]) -> str:
        wait_s = self._retry_policy.first_wait_s
        body = json.dumps(asked).encode()
        for attempt in range(self._retry_policy.retries + 1):
            try:
                return self._mask(parse(self._answer(path, body)))
            except _TryAgainError as error:
                if attempt == self._retry_policy.retries or self._stopped.is_set():
                    reason = f"{self.url}/{path}: {self._shown(str(error))}, {attempt + 1} times"
                    raise (
                        UnusableAnswerError(reason) if error.is_answer else UserError(f"{reason}: {_KEPT}")
                    ) from error
                asked_to_wait_s = error.wait_s if error.wait_s is not None else wait_s * random.uniform(0.75, 1.25)
                self._stopped.wait(min(_LONGEST_WAIT_S, asked_to_wait_s))
                wait_s *= 2
        raise AssertionError("unreachable")

    def _answer(self, path: str, body: bytes) -> Any:
        reply = self._reply(path, body)
        if reply.status // 100 != 2:
            self._refused(path, reply)
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise _TryAgainError("the answer is not JSON", is_answer=True) from error

    def _reply(self, path: str, body: bytes) -> Reply:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        post = Post(self._retry_policy.timeout_s)
        with self._lock:
            self._posts.add(post)
        try:
            # A server on this machine is reached without a proxy.
            return post.send(f"{self.url}/{path}", body, headers, proxies=not self._origin.is_here)
        except NoReplyError as error:
            if error.final:
                raise UserError(
                    f"{self.url}: {self._shown(str(error))}: check the address and the certificate"
                ) from error
            raise _TryAgainError(str(error), is_answer=error.begun) from error
        finally:
            with self._lock:
                self._posts.discard(post)

    def _refused(self, path: str, reply: Reply) -> NoReturn:
        """Raise the error of a status: one to try again, or a final one."""
        words = self._shown(_server_message(reply.body))
        detail = f" ({words})" if words else ""
        if reply.status in _BUSY:
            raise _TryAgainError(f"status {reply.status}{detail}", _retry_after(reply))
        key = ": ".join(filter(None, (self._withheld, advice(self._origin))))
        fixes = {401: key, 403: key, 404: "check the address (it ends in /v1) and the model's name"}
        fix = fixes.get(reply.status, "check the address and the model")
        raise UserError(f"{self.url}/{path}: status {reply.status}{detail}: {fix}")

    def _shown(self, words: str) -> str:
        """Return a server's message on one line, shortened and without the key, which some servers repeat."""
        printable = "".join(each if each.isprintable() else " " for each in self._mask(words, strict=True))
        line = " ".join(printable.split())
        return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."


def _origin(url: str) -> Origin:
    if (origin := Origin.of(url)) is None:
        raise UserError(f"{url}: not the address of a server: give it as in http://localhost:8000/v1")
    return origin


def _sendable(key: str | None) -> str | None:
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key holds characters that cannot be sent: set {KEY_VARIABLE} to the key alone")
    return key or None


def _parse_chat(answer: Any, *, most: int) -> str:
    return _text(answer, _chat_content, most)


def _chat_content(choice: Any) -> Any:
    """Return the content. A thought that was cut off leaves none, and a refusal may have a field of its own."""
    message = choice["message"]
    if message["content"] is None and choice.get("finish_reason") == "length":
        return ""
    return message.get("refusal") if message["content"] is None else message["content"]


def _parse_completion(answer: Any, *, most: int) -> str:
    return _text(answer, lambda choice: choice["text"], most)


def _text(answer: Any, part: Callable[[Any], Any], most: int) -> str:
    try:
        text = part(answer["choices"][0])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _TryAgainError("the answer is JSON, but not of OpenAI's form", is_answer=True) from error
    if not isinstance(text, str):
        raise _TryAgainError("the answer holds no text", is_answer=True)
    if len(text) > most:
        raise _TryAgainError(f"the answer has {len(text):,} characters, many more than were asked for", is_answer=True)
    if not is_utf8(text):
        raise _TryAgainError("the answer holds half a surrogate pair, which is no text", is_answer=True)
    return text


def _server_message(body: bytes) -> str:
    """Return the message in the body of a server's error, empty where there is none."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    inner = parsed.get("error", parsed.get("message")) if isinstance(parsed, dict) else None
    words = inner.get("message") if isinstance(inner, dict) else inner
    return words if isinstance(words, str) else ""


def _retry_after(reply: Reply) -> float | None:
    """Return the seconds that the server asks to wait, given as a number or a date; None where it gives neither."""
    value = str(reply.headers.get("Retry-After", "")).strip()
    try:
        seconds = float(value) if "," not in value else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
