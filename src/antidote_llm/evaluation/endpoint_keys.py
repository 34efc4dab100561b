"""Which server a key in the environment belongs to: it is sent to no other, and never unencrypted over a network."""

from __future__ import annotations

import base64
import html
import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from antidote_llm.errors import UserError

KEY_VARIABLE, URL_VARIABLE = "ANTIDOTE_ENDPOINT_KEY", "ANTIDOTE_ENDPOINT_URL"
OPENAI_KEY_VARIABLE, OPENAI_URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
_OPENAI_URL = "https://api.openai.com/v1"
_PORTS = {"http": 80, "https": 443}
_LONGEST_HOST = 253


@dataclass(frozen=True, slots=True)
class Origin:
    """A server: scheme, host and port."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin | None:
        """Return the server of an address, None where the text is not an http or https address."""
        # URL parsers differ on backslashes and non-ASCII letters: both may hide another host.
        if not url.isascii() or not url.isprintable() or {*" \\"} & {*url}:
            return None
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
        except ValueError:
            return None
        if parts.scheme not in _PORTS or not host or len(host) > _LONGEST_HOST or port == 0 or "@" in parts.netloc:
            return None
        return cls(parts.scheme, host, port or _PORTS[parts.scheme])

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine: localhost, 127.0.0.0/8 or ::1."""
        if self.host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return address.is_loopback if address.version == 4 else address == ipaddress.IPv6Address("::1")

    @property
    def takes_keys(self) -> bool:
        """Whether a key can be sent there safely: over https, or on this machine."""
        return self.scheme == "https" or self.is_here

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True)
class FoundKey:
    """The key that belongs to a server, if any, and why another key in the environment is not sent there, if any."""

    key: str | None = None
    withheld: str | None = None


def key_for(server: Origin, environment: Mapping[str, str]) -> FoundKey:
    """Find the key that belongs to a server.

    ``ANTIDOTE_ENDPOINT_KEY`` belongs to the server of ``ANTIDOTE_ENDPOINT_URL``, and without that variable to the one
    that the user names; ``OPENAI_API_KEY`` to that of ``OPENAI_BASE_URL``, by default api.openai.com.
    """
    own, openai = environment.get(KEY_VARIABLE, ""), environment.get(OPENAI_KEY_VARIABLE, "")
    own_url = environment.get(URL_VARIABLE, "").strip()
    openai_url = environment.get(OPENAI_URL_VARIABLE, "").strip() or _OPENAI_URL
    owners: list[tuple[str, str, str]] = []
    if own.strip() and own_url:
        owners.append((KEY_VARIABLE, own, own_url))
    if openai.strip():
        owners.append((OPENAI_KEY_VARIABLE, openai, openai_url))
    for variable, key, url in owners:
        if Origin.of(url) == server:
            return _sent(variable, key, server)
    if own.strip() and not own_url:
        return _sent(KEY_VARIABLE, own, server)
    return FoundKey(withheld=_others(owners, server) if owners else None)


def advice(server: Origin) -> str:
    """Return how to fix a request that was refused because no key was sent."""
    if not server.takes_keys:
        return "a key is sent only over https or to this machine: serve it under https, or forward a local port to it"
    return f"set {KEY_VARIABLE} to its key and {URL_VARIABLE} to {server}"


def require_no_secret(url: str) -> None:
    """Refuse an address that may hold a secret; the message does not repeat it.

    Raises:
        UserError: It holds more than a scheme, host, port and path.
    """
    place = url.rpartition("@")[2].partition("?")[0]
    if place != url:
        raise UserError(
            f"{place}: an address with a password or a query: leave it out and set {KEY_VARIABLE} where it is a key"
        )


@contextmanager
def only_tied_keys(environment: MutableMapping[str, str]) -> Iterator[bool]:
    """Remove a key without a server from the environment for a while: a recipe, not the user, names the servers.

    Yields whether there is one. It is restored at the end.
    """
    untied = None if environment.get(URL_VARIABLE, "").strip() else environment.pop(KEY_VARIABLE, None)
    try:
        yield bool(untied)
    finally:
        if untied is not None:
            environment[KEY_VARIABLE] = untied


def require_one_owner(urls: Iterable[str], environment: Mapping[str, str]) -> None:
    """Refuse to send one key to several servers.

    Raises:
        UserError: ``ANTIDOTE_ENDPOINT_KEY`` belongs to no named server, and would be sent to two.
    """
    if environment.get(URL_VARIABLE, "").strip() or not (own := environment.get(KEY_VARIABLE, "").strip()):
        return
    servers = dict.fromkeys(filter(None, map(Origin.of, urls)))
    taking = [str(server) for server in servers if key_for(server, environment).key == own]
    if len(taking) > 1:
        raise UserError(
            f"{KEY_VARIABLE} would be sent to {' and '.join(taking)}: set {URL_VARIABLE} to the one that it belongs to"
        )


def _sent(variable: str, key: str, server: Origin) -> FoundKey:
    if server.takes_keys:
        return FoundKey(key)
    return FoundKey(withheld=f"{variable} is not sent to {server}, since http is not encrypted")


def _others(owners: Iterable[tuple[str, str, str]], server: Origin) -> str:
    belongs = (f"{variable} is for {Origin.of(url) or 'no valid address'}" for variable, _, url in owners)
    return f"{', '.join(belongs)} and is not sent to {server}"


MASK = "[key]"
# Eight letters and digits of the key in order are not a coincidence, except for words of up to eleven letters.
_PART = 8
_LONGEST_WORD = 11
_SHORTEST_HIDDEN = 6
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})|\\+u([0-9a-fA-F]{4})|\\+x([0-9a-fA-F]{2})|&#\w{1,7};|\\+[nrtbf]")


@dataclass(frozen=True, slots=True)
class _Needle:
    """One encoding of the key: its letters and digits, and how many of them in a row reveal it."""

    text: str
    part: int
    has_words: bool

    @property
    def folded(self) -> str:
        return self.text.lower()


class Mask:
    """Hides one key.

    Parts of eight letters and digits or more are hidden, whatever the letter case, with any white space, punctuation
    and escapes between and in them, also in base64 and hexadecimal. Eight to eleven letters that may be an English word
    (``required`` in a key ``sk-no-key-required``) are not hidden unless they are the whole key.

    Args:
        key: The key; without one, nothing is hidden.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key or ""
        self._needles = _needles(self._key)

    def __call__(self, text: str, *, strict: bool = False) -> str:
        """Return a text without the key.

        Args:
            text: A server's reply.
            strict: For error messages: also hide keys of any length, and parts that may be words.
        """
        if not self._key:
            return text
        if strict or len(self._key) >= _SHORTEST_HIDDEN:
            text = text.replace(self._key, MASK)
        letters, starts, ends = _letters(text)
        hidden = bytearray(len(letters))
        for needle in self._needles:
            for start, end in _runs(letters, needle):
                if strict or not _is_word(needle, letters[start:end]):
                    hidden[start:end] = b"\1" * (end - start)
        return _replaced(text, hidden, starts, ends) if any(hidden) else text


def _needles(key: str) -> list[_Needle]:
    plain = _alphanumeric(key)
    found = [_Needle(plain, min(_PART, len(plain)), True)] if len(plain) >= _SHORTEST_HIDDEN else []
    if len(key) < _PART:
        return found
    found.append(_Needle(key.encode().hex(), 2 * _PART, False))
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + key.encode()).decode().rstrip("=")
        # The first letters hold bits of what precedes the key, the last ones of what follows it.
        inner = _alphanumeric(coded[(0, 2, 3)[shift] : -1])
        found.append(_Needle(inner, min(_PART + 4, len(inner)), False))
    return [needle for needle in found if needle.text]


def _alphanumeric(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _letters(text: str) -> tuple[str, list[int], list[int]]:
    """Return the letters and digits of a text, unescaped and in lower case, with the start and end of each."""
    found: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for part, start, end in _unescaped(text):
        for character in part if part.isascii() else unicodedata.normalize("NFKC", part):
            if character.isalnum():
                found.append(character.lower()[:1])
                starts.append(start)
                ends.append(end)
    return "".join(found), starts, ends


def _unescaped(text: str) -> Iterator[tuple[str, int, int]]:
    at = 0
    for match in _ESCAPE.finditer(text):
        yield from ((text[place], place, place + 1) for place in range(at, match.start()))
        yield _unescaped_character(match), match.start(), match.end()
        at = match.end()
    yield from ((text[place], place, place + 1) for place in range(at, len(text)))


def _unescaped_character(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code is not None:
        return chr(int(code, 16))
    return html.unescape(match[0]) if match[0].startswith("&") else " "


def _runs(letters: str, needle: _Needle) -> Iterator[tuple[int, int]]:
    """Return the start and end of each part of the needle, as long as possible."""
    folded, part = needle.folded, needle.part
    parts = {folded[at : at + part] for at in range(len(folded) - part + 1)}
    at, last = 0, len(letters) - part
    while at <= last:
        if letters[at : at + part] not in parts:
            at += 1
            continue
        end = at + part
        while end < len(letters) and letters[at : end + 1] in folded:
            end += 1
        yield at, end
        at = end - part + 1


def _is_word(needle: _Needle, run: str) -> bool:
    """Whether a part may be an ordinary word: few letters, all of one case."""
    at = needle.folded.find(run)
    part = needle.text[at : at + len(run)]
    one_case = part.isalpha() and (part.islower() or part.isupper() or part.istitle())
    return needle.has_words and one_case and len(run) < len(needle.text) and len(run) <= _LONGEST_WORD


def _replaced(text: str, hidden: bytearray, starts: list[int], ends: list[int]) -> str:
    found: list[str] = []
    at = place = 0
    while place < len(hidden):
        if not hidden[place]:
            place += 1
            continue
        first = place
        while place < len(hidden) and hidden[place]:
            place += 1
        found += [text[at : starts[first]], MASK]
        at = ends[place - 1]
    return "".join([*found, text[at:]])
