from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from antidote_llm.errors import UserError
from antidote_llm.io.files import write_json
from antidote_llm.io.strict_json import json_text, parse_json, parse_model, read_json, readable_name

BAD = {
    "nothing": (b"", "not JSON"),
    "half": (b'{"a": ', "not JSON"),
    "brackets": (b"[" * 100_000, "too deep"),
    "closed brackets": (b"[" * 500 + b"]" * 500, "too deep"),
    "objects": (b'{"a":' * 500 + b"1" + b"}" * 500, "too deep"),
    "not a number": (b'{"a": NaN}', "NaN"),
    "infinity": (b"[-Infinity]", "Infinity"),
    "a large float": (b"1e400", "too large"),
    "a large integer": (b"9" * 6000, "64 bits"),
    "one more than 64 bits": (str(2**63).encode(), "64 bits"),
    "half a pair": (b'["\\ud800"]', "surrogate"),
    "half a pair as a key": (b'{"\\udcff": 1}', "surrogate"),
    "another encoding": ('["é"]'.encode("latin-1"), "UTF-8"),
    "UTF-16": ("[1]".encode("utf-16"), "UTF-8"),
}


class Thing(BaseModel):
    count: int


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_bad_json_is_one_kind_of_error(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(data)
    with pytest.raises(ValueError, match=words):
        parse_model(Thing, data)
    path = tmp_path / "zorbik.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"zorbik\.json: .*{words}.*: remove it"):
        read_json(path, "remove it")


def test_good_json_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -(2**63), 0.5, None, True, "грибы \U0001f33f"], "b": {"c": []}}
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_model(Thing, b'{"count": 3}').count == 3


def test_what_is_wrong_with_a_record_is_one_short_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^count: Input should be a valid integer[^\n]*$"):
        parse_model(Thing, json.dumps({"count": "z" * 10_000}))
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "nowhere.json")


def test_names_that_are_not_utf_8_are_spelled_out(tmp_path: Path) -> None:
    assert readable_name("h\udcff.jsonl") == "h\\xff.jsonl"
    assert readable_name("\udcc3\udca9") == "é"
    assert readable_name("\ud800") == "\\xed\\xa0\\x80"
    assert json.loads(json_text({"a\udcff": 'b\udcff"'})) == {"a\\xff": 'b\\xff"'}
    write_json(tmp_path / "a.json", ["\udcff"])
    assert read_json(tmp_path / "a.json") == ["\\xff"]
