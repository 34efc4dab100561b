"""A server that speaks the OpenAI protocol: asked in parallel, with patience, and ended clearly."""

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
# A server may ignore how many tokens are wanted, but nobody looks at an answer without an end.
_MOST_CHARACTERS, _MOST_CHARACTERS_A_TOKEN = 1 << 16, 64
# So many requests in a row without a usable answer are no odd answers, but an odd server.
_MOST_FAILED_IN_A_ROW = 8
_KEPT = "what came so far is kept: see to the server and run again"
_log = logging.getLogger(__name__)


class UnusableAnswerError(UserError):
    """A server answered one request, in all retries, with what is no answer.

    Attributes:
        reason: What it answered with, and how often.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: {_KEPT}")
        self.reason = reason


class _TryAgainError(Exception):
    """What may go away by itself: a busy server, a lost connection, an answer that is no JSON.

    Attributes:
        wait_s: Seconds to wait; None for the usual ones.
        is_answer: Whether the server did answer, but with nothing that can be used.
    """

    def __init__(self, problem: str, wait_s: float | None = None, *, is_answer: bool = False) -> None:
        super().__init__(problem)
        self.wait_s, self.is_answer = wait_s, is_answer


class Failures:
    """Counts the requests that brought nothing usable, and says so in one line."""

    def __init__(self) -> None:
        self.errors: dict[int, UnusableAnswerError] = {}

    def __call__(self, place: int, error: UnusableAnswerError) -> None:
        """Take the place of a request, and why it failed."""
        self.errors[place] = error

    def tell(self, of: str, consequence: str) -> None:
        """Warn of the failures where there are any.

        Args:
            of: How many were asked, and for what.
            consequence: What becomes of those that failed.
        """
        if self.errors:
            _log.warning(
                "%d of %s failed and %s: %s", len(self.errors), of, consequence, next(iter(self.errors.values())).reason
            )


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        timeout_s: Seconds after which a request whose answer is not whole is given up.
        retries: How many times a request is sent again, each time after twice the wait before it.
        first_wait_s: Seconds before the first of them, unless the server names a time.
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
        patience: How long the server is waited for.
        concurrency: Most requests under way at once.

    Raises:
        UserError: The address is no http or https address, or holds a password, or the key cannot be sent there.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        patience: Patience | None = None,
        concurrency: int = 8,
    ) -> None:
        require_no_secret(url)
        self._origin = _origin(url)
        self.url, self.model = url.rstrip("/"), model
        self._key, self._patience, self._concurrency = _sendable(key), patience or Patience(), concurrency
        if self._key is not None and not self._origin.takes_keys:
            raise UserError(f"{self.url}: {advice(self._origin)}")
        self._withheld: str | None = None
        self._mask = Mask(self._key)
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._posts: set[Post] = set()

    @classmethod
    def named(cls, text: str, option: str) -> Endpoint:
        """Return the endpoint that ``URL#MODEL`` names, with the key of the environment that belongs to it.

        A key that belongs to another server is not sent, and a line says so.

        Args:
            text: What the user said.
            option: What stands before it on the command line, for messages.

        Raises:
            UserError: No model is named, or the address is none.
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
            extra: Fields of the request beside those of the protocol.

        Raises:
            UserError: The server refuses, or does not give an answer within all retries.
        """
        asked: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": 0, **(extra or {})}
        most = max(_MOST_CHARACTERS, _MOST_CHARACTERS_A_TOKEN * max_tokens)
        if isinstance(messages, str):
            text_of = partial(_text_of_completion, most=most)
            return self._ask("completions", {**asked, "prompt": messages}, text_of)
        turns = [dict(message) for message in messages]
        return self._ask("chat/completions", {**asked, "messages": turns}, partial(_text_of_chat, most=most))

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
            answered: Called in this thread with the place and the text of each answer as it comes: what has come is
                not lost where a later one fails.
            extra: As for :meth:`complete`.
            failed: Called in this thread with the place of each request that brought nothing usable, and why; its text
                is empty. Without it the first of them ends all, as do eight in a row in any case.

        Raises:
            UserError: As :meth:`complete`; requests that were under way are waited for, none is sent any more.
        """
        found: dict[int, str] = {}
        in_a_row = 0
        self._given_up.clear()
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
                self._given_up.set()
                if not isinstance(error, Exception):
                    self._cut()
                self._finish(pool, futures, found, answered)
                raise
        return [found[place] for place in range(len(asked))]

    @staticmethod
    def _finish(
        pool: ThreadPoolExecutor, futures: Mapping[Future[str], int], found: dict[int, str], answered: Answered | None
    ) -> None:
        """Send no more requests, and hand on what those under way still bring."""
        pool.shutdown(wait=True, cancel_futures=True)
        for future, place in futures.items():
            came = future.done() and not future.cancelled() and future.exception() is None
            if came and place not in found and answered is not None:
                answered(place, future.result())

    def _cut(self) -> None:
        """End the requests that are under way: the user interrupted, and nobody waits for them."""
        with self._lock:
            for post in self._posts:
                post.cut()

    def _ask(self, path: str, asked: Mapping[str, Any], text_of: Callable[[Any], str]) -> str:
        wait_s = self._patience.first_wait_s
        body = json.dumps(asked).encode()
        for attempt in range(self._patience.retries + 1):
            try:
                return self._mask(text_of(self._answer(path, body)))
            except _TryAgainError as error:
                if attempt == self._patience.retries or self._given_up.is_set():
                    reason = f"{self.url}/{path}: {self._shown(str(error))}, {attempt + 1} times"
                    raise (
                        UnusableAnswerError(reason) if error.is_answer else UserError(f"{reason}: {_KEPT}")
                    ) from error
                asked_to_wait_s = error.wait_s if error.wait_s is not None else wait_s * random.uniform(0.75, 1.25)
                self._given_up.wait(min(_LONGEST_WAIT_S, asked_to_wait_s))
                wait_s *= 2
        raise AssertionError("unreachable")

    def _answer(self, path: str, body: bytes) -> Any:
        reply = self._reply(path, body)
        if reply.status // 100 != 2:
            self._refused(path, reply)
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise _TryAgainError("the answer is no JSON", is_answer=True) from error

    def _reply(self, path: str, body: bytes) -> Reply:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        post = Post(self._patience.timeout_s)
        with self._lock:
            self._posts.add(post)
        try:
            # A server on this machine is no business of a proxy.
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
        """Say what a status means: to be tried again, or the end."""
        words = self._shown(_said(reply.body))
        said = f" ({words})" if words else ""
        if reply.status in _BUSY:
            raise _TryAgainError(f"status {reply.status}{said}", _retry_after(reply))
        key = ": ".join(filter(None, (self._withheld, advice(self._origin))))
        fixes = {401: key, 403: key, 404: "check the address (it ends in /v1) and the model's name"}
        fix = fixes.get(reply.status, "check the address and the model")
        raise UserError(f"{self.url}/{path}: status {reply.status}{said}: {fix}")

    def _shown(self, words: str) -> str:
        """Return a server's words for one line: without the key, which some repeat, and not too many."""
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


def _text_of_chat(answer: Any, *, most: int) -> str:
    return _text(answer, _said_in_chat, most)


def _said_in_chat(choice: Any) -> Any:
    """Return the content; a thought that was cut leaves none, and a refusal may stand in a field of its own."""
    message = choice["message"]
    if message["content"] is None and choice.get("finish_reason") == "length":
        return ""
    return message.get("refusal") if message["content"] is None else message["content"]


def _text_of_completion(answer: Any, *, most: int) -> str:
    return _text(answer, lambda choice: choice["text"], most)


def _text(answer: Any, part: Callable[[Any], Any], most: int) -> str:
    try:
        text = part(answer["choices"][0])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _TryAgainError("the answer is JSON of another form than OpenAI's", is_answer=True) from error
    if not isinstance(text, str):
        raise _TryAgainError("the answer holds no text", is_answer=True)
    if len(text) > most:
        raise _TryAgainError(f"the answer has {len(text):,} characters, many more than was asked for", is_answer=True)
    if not is_utf8(text):
        raise _TryAgainError("the answer holds half a surrogate pair, which is no text", is_answer=True)
    return text


def _said(body: bytes) -> str:
    """Return the server's own words on an error, nothing where there are none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    inner = said.get("error", said.get("message")) if isinstance(said, dict) else None
    words = inner.get("message") if isinstance(inner, dict) else inner
    return words if isinstance(words, str) else ""


def _retry_after(reply: Reply) -> float | None:
    """Return the seconds that the server asks to wait, as a number or until a date; None where it says neither."""
    value = str(reply.headers.get("Retry-After", "")).strip()
    try:
        seconds = float(value) if "," not in value else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
