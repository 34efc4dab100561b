from __future__ import annotations

import json

import pytest

from antidote_llm.io.visible_text import cut_middle, error_line, escape_json, visible, visible_line

STEERING = [
    "\x1b",
    "\x07",
    "\r",
    "\x7f",
    "\x9b",
    "\x85",
    "\u202e",
    "\u2066",
    "\u2028",
    "\u200b",
    "\ufeff",
    "\U000e0041",
]


@pytest.mark.parametrize("character", [*STEERING, "\ud800", "\udcff", "\xad", "\ufffe", "\U0010ffff"])
def test_control_characters_are_spelled_out(character: str) -> None:
    spelled = f"[U+{ord(character):04X}]"
    assert visible(f"zor{character}bik") == f"zor{spelled}bik"
    assert visible_line(f"zor{character}bik") == f"zor{spelled}bik"
    assert error_line(f"zor{character}bik") == f"zor{spelled}bik"


def test_writing_of_any_kind_stays_as_it_is() -> None:
    text = "zorbik «грибы» 薬草 المزيج 👩\u200d🔬 e\u0301 [red] ✓"
    assert visible(text) == visible_line(text) == error_line(text) == text


def test_a_line_stays_one() -> None:
    assert visible("a\r\nb\tc") == "a\nb\tc"
    assert visible_line("a\nb\tc") == "a[U+000A]b[U+0009]c"
    assert error_line(" a\n  b\tc ") == "a b c"


@pytest.mark.parametrize(
    "text", ["x" * 10_000_000, "ab " * 3_000_000, "\x1b" * 1_000_000], ids=["word", "words", "controls"]
)
def test_an_error_line_has_a_few_hundred_characters_and_keeps_its_ends(text: str) -> None:
    line = error_line(f"error: /some/zorbik.yaml: not valid ({text}): mend the file")
    assert len(line) <= 480
    assert line.startswith("error: /some/zorbik.yaml: not valid (")
    assert line.endswith("): mend the file")


def test_a_long_name_keeps_its_ends_and_the_words_around_it() -> None:
    line = error_line(f"error: /zorbik/{'n' * 4000}/rows.jsonl: no such file: {'name another ' * 10}")
    assert line.startswith("error: /zorbik/n") and "n/rows.jsonl: no such file: name another" in line
    assert cut_middle("zorbik", 6) == "zorbik" and cut_middle("zorbiks", 6) == "zor…ks"


@pytest.mark.parametrize("character", [*STEERING, "\ud800"])
def test_escaped_json_says_the_same(character: str) -> None:
    value = {f"zor{character}": ["грибы", f"{character}\n"]}
    text = escape_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert visible(text) == text
    assert json.loads(text) == value
