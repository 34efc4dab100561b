"""A key that a server repeats is masked, whole or in parts, and ordinary words are not."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.evaluation.endpoint_keys import MASK, Mask

KEY = "sk-Zorb1k-4Tw9mAd7RunKad0"
ENCODED = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "lower case": KEY.lower(),
    "spaced": " ".join(KEY),
    "lines": "\n".join([KEY[:9], KEY[9:17], KEY[17:]]),
    "marks": "-*-".join(KEY),
    "zero width": "\N{ZERO WIDTH SPACE}".join(KEY),
    "full width": "".join(chr(ord(each) + 0xFEE0) for each in KEY),
    "url": "".join(f"%{ord(each):02X}" for each in KEY),
    "part url": quote(KEY, safe="").replace("-", "%2D"),
    "json": "".join(f"\\u{ord(each):04x}" for each in KEY),
    "json in json": json.dumps("".join(f"\\u{ord(each):04x}" for each in KEY)),
    "python": "".join(f"\\x{ord(each):02x}" for each in KEY),
    "html": "".join(f"&#{ord(each)};" for each in KEY),
    "html hexadecimal": html.escape("".join(f"&#x{ord(each):x};" for each in KEY)).replace("&amp;", "&"),
    "a list": json.dumps([*KEY]),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of a header": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "base64 of a user": base64.b64encode(f"me:{KEY}".encode()).decode(),
    "base64 for urls": base64.urlsafe_b64encode(KEY.encode()).decode(),
    "hexadecimal": KEY.encode().hex(),
}


def left_of(text: str) -> str:
    """Return the remaining letters and digits."""
    return "".join(filter(str.isalnum, text.replace(MASK, " ").lower()))


@pytest.mark.parametrize("case", ENCODED)
@pytest.mark.parametrize("strict", [True, False])
def test_the_key_is_masked_in_every_encoding(case: str, strict: bool) -> None:
    shown = Mask(KEY)(f"zob ({ENCODED[case]}) run", strict=strict)
    assert MASK in shown and shown.startswith("zob (") and shown.endswith(") run")
    # At most the edges of an encoding remain: less than one part.
    assert len(left_of(shown)) < len("zobrun") + 12


@given(cut=st.integers(8, len(KEY) - 1))
def test_each_long_part_is_masked(cut: int) -> None:
    mask = Mask(KEY)
    for part in (KEY[:cut], KEY[-cut:]):
        if sum(map(str.isalnum, part)) >= 8:
            assert left_of(mask(f"q {part} x")) == "qx"


@given(st.text())
def test_other_text_is_not_masked(text: str) -> None:
    assert Mask(KEY)(text, strict=True) == text
    assert Mask(None)(text, strict=True) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("sk-no-key-required", "No answer is required here."),
        ("EMPTY", "The list is EMPTY."),
        ("not-harmless-1", "HARMLESS"),
        ("token-abc123", "a token"),
    ],
)
def test_words_that_a_key_contains_are_not_masked_in_answers(key: str, text: str) -> None:
    assert Mask(key)(text) == text


def test_error_messages_mask_every_part() -> None:
    assert Mask("EMPTY")("key EMPTY?", strict=True) == f"key {MASK}?"
    assert Mask("sk-no-key-required")("is required", strict=True) == f"is {MASK}"


def test_a_long_text_is_masked_in_linear_time() -> None:
    text = "zob mid run kad " * 2**14
    assert Mask(KEY)(text) == text
