"""Which server a key of the environment belongs to: it is sent to no other, and never unencrypted over a network."""

from __future__ import annotations

import ipaddress
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
        """Return the server of an address, None where the text is no http or https address."""
        # What some readers of addresses drop, others keep: a backslash or a letter of another alphabet may hide a host.
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
        """Whether it is on this machine: localhost, 127.0.0.0/8 or ::1, and nothing that only looks like one."""
        if self.host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return address.is_loopback if address.version == 4 else address == ipaddress.IPv6Address("::1")

    @property
    def takes_keys(self) -> bool:
        """Whether a key on its way there can be read by nobody else."""
        return self.scheme == "https" or self.is_here

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True)
class FoundKey:
    """What the environment holds for a server.

    Attributes:
        key: The key that belongs to it; None where there is none.
        withheld: Why a key of the environment is not sent there; None where none is withheld.
    """

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
    """Return what to do about a server that wants a key."""
    if not server.takes_keys:
        return "a key goes over https or to this machine alone: serve it under https, or forward a local port to it"
    return f"set {KEY_VARIABLE} to its key and {URL_VARIABLE} to {server}"


def require_no_secret(url: str) -> None:
    """Refuse an address that may hold a secret besides a place: it is neither kept nor repeated.

    Raises:
        UserError: There is something else in it.
    """
    place = url.rpartition("@")[2].partition("?")[0]
    if place != url:
        raise UserError(
            f"{place}: an address with a password or a query: leave it out and set {KEY_VARIABLE} where it is a key"
        )


@contextmanager
def only_tied_keys(environment: MutableMapping[str, str]) -> Iterator[bool]:
    """Take a key that names no server out of the environment, where servers are not named by the user but by a recipe.

    Yields whether there is one; it is put back at the end.
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
        UserError: ``ANTIDOTE_ENDPOINT_KEY`` names no server, and would go to two.
    """
    if environment.get(URL_VARIABLE, "").strip() or not (own := environment.get(KEY_VARIABLE, "").strip()):
        return
    servers = dict.fromkeys(filter(None, map(Origin.of, urls)))
    taking = [str(server) for server in servers if key_for(server, environment).key == own]
    if len(taking) > 1:
        raise UserError(
            f"{KEY_VARIABLE} would go to {' and '.join(taking)}: set {URL_VARIABLE} to the one that it is for"
        )


def _sent(variable: str, key: str, server: Origin) -> FoundKey:
    if server.takes_keys:
        return FoundKey(key)
    return FoundKey(withheld=f"{variable} is not sent to {server}, as http can be read on the way")


def _others(owners: Iterable[tuple[str, str, str]], server: Origin) -> str:
    said = (f"{variable} is for {Origin.of(url) or 'no server that can be read'}" for variable, _, url in owners)
    return f"{', '.join(said)} and is not sent to {server}"
