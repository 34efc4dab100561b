from __future__ import annotations

from pathlib import Path

import pytest

from antidote_llm.io.strict_yaml import parse_yaml, read_yaml

LISTS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(7))
MERGES = "a0: &a0 {k: v}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 8))
CHAIN = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 'x'}]" for n in range(200))

BAD = {
    "brackets": ("[" * 250_000, "levels deep"),
    "braces": ("{" * 5000, "levels deep"),
    "dashes": ("- " * 5000, "levels deep"),
    "indented": ("\n".join(" " * n + "a:" for n in range(300)), "levels deep"),
    "anchors of anchors": (CHAIN, "levels deep"),
    "growing lists": (LISTS, "values"),
    "growing merges": (MERGES, "values"),
    "many values": (f"a: [{'b,' * 100_000}]", "values"),
    "a long text": ("#" * 300_000, "longer"),
    "an anchor in itself": ("a: &a [*a]", "holds itself"),
    "a merge of itself": ("a: &a {<<: *a}", "holds itself"),
    "an unknown anchor": ("a: *b", "undefined alias"),
    "a date": ("a: 2001-13-45", "'2001-13-45' is not a valid timestamp at line 1"),
    "a word for a number": ("a: !!int abc", "not a valid int"),
    "nothing for a number": ('a: !!int ""', "not a valid int"),
    "a word for a fraction": ("a: !!float x", "not a valid float"),
    "a word for a time": ("a: !!timestamp x", "not a valid timestamp"),
    "a word for a truth": ("a: !!bool maybe", "not a valid bool"),
    "bytes": ("a: !!binary YQ==", "the tag binary"),
    "a set": ("a: !!set {b}", "the tag set"),
    "pairs": ("a: !!pairs [b: c]", "the tag pairs"),
    "code": ("a: !!python/object/apply:os.system [zorbik]", "os.system"),
    "a tag of its own": ("a: !zorbik b", "!zorbik"),
    "a long number": ("a: " + "9" * 6000, "a number too long"),
    "a long number of base 16": ("a: 0x" + "f" * 6000, "a number too long"),
    "a long number of base 60": ("a: " + "1:" * 6000 + "1", "a number too long"),
    "a key twice": ("a: 1\nb: 2\na: 3", "a is given twice at line 3"),
    "a number as a key": ("1: a", "1 as a key"),
    "a truth as a key": ("on: a", "on as a key"),
    "nothing as a key": ("~: a", "~ as a key"),
    "a list as a key": ("? [a]\n: b", "a key that is no text"),
    "a tab": ("a:\n\t- b", "cannot start any token"),
    "a zero byte": ("a: b\0", "not allowed"),
    "an escaped zero byte": ('a: "b\\0"', "no name can hold"),
    "half a surrogate pair": ('a: "\\ud800"', "no name can hold"),
    "several documents": ("a: b\n---\na: c", "another document"),
    "another encoding": ("a: é".encode("latin-1"), "not UTF-8"),
    "UTF-16": ("a: b".encode("utf-16"), "not UTF-8"),
}


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_bad_yaml_is_one_short_line(data: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as found:
        parse_yaml(data)
    assert words in str(found.value) and len(str(found.value)) < 300 and "\n" not in str(found.value)
    path = tmp_path / "zorbik.yaml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError):
        read_yaml(path)


def test_good_yaml_is_read() -> None:
    text = """
    a: &a {x: 1, y: [1.5, .inf, null, true, yes, "2001-13-45"]}
    b: &b {<<: *a, x: 2}
    c: *b
    d: {<<: *b, z: !!str 3}
    """
    last = [1.5, float("inf"), None, True, True, "2001-13-45"]
    a, b = {"x": 1, "y": last}, {"x": 2, "y": last}
    assert parse_yaml(text) == {"a": a, "b": b, "c": b, "d": {**b, "z": "3"}}
    assert parse_yaml("\ufeffa: b".encode()) == {"a": "b"}
    assert parse_yaml("") is None
