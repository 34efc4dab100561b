"""A key is sent only to the server that it belongs to, over TLS or within this machine."""

from __future__ import annotations

import pytest

from antidote_llm.errors import UserError
from antidote_llm.evaluation.endpoint_keys import Origin, advice, key_for, only_tied_keys, require_one_owner

OPENAI, OWN = {"OPENAI_API_KEY": "sk-openai"}, {"ANTIDOTE_ENDPOINT_KEY": "own"}
TIED = {**OWN, "ANTIDOTE_ENDPOINT_URL": "https://models.example:8443/v1"}


def origin(url: str) -> Origin:
    found = Origin.of(url)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.openai.com/v1", "sk-openai"),
        ("HTTPS://API.OpenAI.com:443/v1/", "sk-openai"),
        ("http://api.openai.com/v1", None),
        ("http://api.openai.com:443/v1", None),
        ("https://api.openai.com:8443/v1", None),
        ("https://api.openai.com./v1", None),
        ("https://api.openai.com.evil.example/v1", None),
        ("https://evil.example/api.openai.com", None),
        ("https://xn--pi-openai-xyz.com/v1", None),
        ("http://127.0.0.1:8000/v1", None),
        ("http://localhost:8000/v1", None),
    ],
)
def test_the_openai_key_is_sent_only_to_openai(url: str, key: str | None) -> None:
    found = key_for(origin(url), OPENAI)
    assert found.key == key
    assert (found.withheld is None) == (key is not None)
    assert key is not None or "OPENAI_API_KEY is for https://api.openai.com" in str(found.withheld)


@pytest.mark.parametrize(
    ("base", "url", "key"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/other", "sk-openai"),
        ("http://localhost:8000/v1", "http://localhost:8001/v1", None),
        ("http://localhost:8000/v1", "http://127.0.0.1:8000/v1", None),
        ("http://localhost:8000/v1", "https://localhost:8000/v1", None),
        ("https://gate.example/v1", "https://gate.example/v1", "sk-openai"),
        ("https://gate.example/v1", "https://api.openai.com/v1", None),
        ("http://gate.example/v1", "http://gate.example/v1", None),
        ("zorbik", "https://api.openai.com/v1", None),
        (" ", "https://api.openai.com/v1", "sk-openai"),
    ],
)
def test_the_openai_key_belongs_to_the_base_url(base: str, url: str, key: str | None) -> None:
    assert key_for(origin(url), {**OPENAI, "OPENAI_BASE_URL": base}).key == key


def test_a_key_is_sent_to_its_server_or_without_one_to_the_named_server() -> None:
    own, other = origin("https://models.example:8443/v1"), origin("https://other.example/v1")
    assert key_for(own, TIED).key == "own"
    assert key_for(other, TIED).key is None
    assert "https://models.example:8443" in str(key_for(other, TIED).withheld)
    assert key_for(other, OWN).key == "own"
    # A key with a server takes precedence over a key without one.
    assert key_for(origin("https://api.openai.com/v1"), {**OWN, **OPENAI}).key == "sk-openai"
    assert key_for(other, {}) == key_for(other, {"OPENAI_API_KEY": " "})
    unencrypted = key_for(origin("http://other.example/v1"), OWN)
    assert unencrypted.key is None and "http is not encrypted" in str(unencrypted.withheld)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("[::1]", True),
        ("[0:0:0:0:0:0:0:1]", True),
        ("localhost.evil.example", False),
        ("localhost.", False),
        ("127.0.0.1.nip.io", False),
        ("127.1", False),
        ("2130706433", False),
        ("0x7f000001", False),
        ("127.0.0.1.", False),
        ("0.0.0.0", False),
        ("[::ffff:127.0.0.1]", False),
        ("[::1%25lo]", False),
        ("[::]", False),
        ("128.0.0.1", False),
    ],
)
def test_only_loopback_addresses_are_this_machine(host: str, here: bool) -> None:
    found = origin(f"http://{host}:8000/v1")
    assert (found.is_here, found.takes_keys) == (here, here)
    assert (key_for(found, OWN).key is not None) == here


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hidden@api.openai.com/v1",
        "https://evil.example\\@api.openai.com/v1",
        "https://evil.example\\.api.openai.com/v1",
        "https://api.openai\N{IDEOGRAPHIC FULL STOP}com/v1",
        "https://\N{FULLWIDTH LATIN SMALL LETTER A}pi.openai.com/v1",
        "https://api.openai.com/v1\r\nX: 1",
        "https://api.openai.com\x00.evil.example/v1",
        f"https://{'a' * 70}.example/v1",
        "https://a..example/v1",
        f"https://{'a.' * 200}example/v1",
        "https://api.openai.com:99999/v1",
        "https:///v1",
        "ftp://api.openai.com/v1",
    ],
)
def test_an_ambiguous_url_is_refused(url: str) -> None:
    assert Origin.of(url) is None


def test_one_key_is_not_sent_to_two_servers() -> None:
    urls = ["https://one.example/v1", "https://one.example/v2", "https://two.example/v1", "zorbik"]
    with pytest.raises(UserError, match=r"https://one\.example and https://two\.example.*ANTIDOTE_ENDPOINT_URL"):
        require_one_owner(urls, OWN)
    require_one_owner(urls[:2], OWN)
    require_one_owner(urls, TIED)
    require_one_owner([urls[0], "https://api.openai.com/v1"], {**OWN, **OPENAI})


def test_servers_of_a_recipe_get_only_keys_that_name_them() -> None:
    for environment, left in ((OWN, {}), (TIED, TIED), (OPENAI, OPENAI), ({**OWN, **OPENAI}, OPENAI)):
        found = dict(environment)
        with only_tied_keys(found) as withheld:
            assert found == left and withheld == (found != environment)
        assert found == environment


def test_the_advice_depends_on_the_server() -> None:
    assert "ANTIDOTE_ENDPOINT_URL to http://[::1]:8000" in advice(origin("http://[::1]:8000/v1"))
    assert "https" in advice(origin("http://models.example/v1"))
