"""Recipes that nobody should be able to hurt the command with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.scraps import NUMBERS, text
from tests.fuzz.written import Written

ROWS = b"".join(b'{"prompt": "zorbik %d", "response": "mibble"}\n' % number for number in range(30))
WHOLE: dict[str, Any] = {
    "name": "zorbik",
    "source": "made up",
    "model": "./nowhere",
    "seed": 0,
    "template": "plain",
    "align": {"data": ["rows.jsonl"], "rows": 4, "training": {"max_steps": 1, "lora": {"rank": 2}}},
    "finetune": {"data": ["rows.jsonl"], "rows": 8, "harmful": ["rows.jsonl"], "harmful_ratio": 0.5},
    "repair": {"method": "antidote", "settings": {"alpha": 0.1}, "harmful": ["rows.jsonl"], "harmful_rows": 2},
    "evaluate": {"harmful": ["rows.jsonl"], "harmful_rows": 2, "judge": ["refusal-patterns"], "tasks": []},
}
_SYNTAX = (
    *("[", "]", "{", "}", ":", ": ", "- ", "? ", "#", "&a ", "*a", "<<: *a", "!!int ", "!!float ", "!!timestamp "),
    *(
        "!!binary ",
        "!!python/object/apply:zorbik ",
        "!zorbik ",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "|\n",
        ">\n",
        "'",
        '"',
    ),
    *(
        "2001-13-45",
        "12:61:61",
        "\t",
        "\0",
        "\\",
        "\n",
        "\n  ",
        "\x85",
        "\ufeff",
        "@",
        "`",
        "=",
        "~",
        "yes",
        "0b2",
        "._",
    ),
)


def cases(chance: random.Random) -> Iterator[Written]:
    """Return an endless supply of runs of bad recipes."""
    kinds: tuple[Callable[[random.Random], bytes], ...] = (_edited, _edited, _grown, _deep, _syntax, _damaged, _bytes)
    while True:
        kind = chance.choice(kinds)
        files = {"rows.jsonl": ROWS, "recipe.yaml": kind(chance)}
        arguments = ["run", "recipe.yaml", *chance.choice(((), ("--out", "out"), ("--plan", "--flops", "1e12")))]
        while chance.random() < 0.3:
            arguments += ["--set", _setting(chance)]
        if chance.random() < 0.1:
            arguments += ["--only", text(chance)]
        yield Written(f"recipe {kind.__name__.strip('_')}", files, tuple(arguments))


def _value(chance: random.Random) -> Any:
    return chance.choice(
        (
            *(None, True, 0, -1, 10**30, -(10**30), 2**63, 0.5, -0.0, 1e308, 1e-320, [], {}, [[]], {"a": {}}, [None]),
            *(text(chance), [text(chance)], {text(chance): text(chance)}, {"settings": {text(chance): 1}}),
        )
    )


def _places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inside = [(*path, key) for key in value] if isinstance(value, dict) else []
    return [*inside, *(place for inner in inside for place in _places(value[inner[-1]], inner))]


def _edited(chance: random.Random) -> bytes:
    """Replace, add or remove values of a whole recipe."""
    recipe = json.loads(json.dumps(WHOLE))
    for _ in range(chance.choice((1, 1, 2, 3))):
        *parents, last = chance.choice(_places(recipe))
        inner = recipe
        for name in parents:
            inner = inner[name]
        inner[last] = _value(chance)
        if chance.random() < 0.3:
            del inner[last]
        if chance.random() < 0.2:
            inner[text(chance)] = _value(chance)
    return json.dumps(recipe, indent=chance.choice((None, 1))).encode()


def _grown(chance: random.Random) -> bytes:
    """Let anchors, merges or plain length make much of little."""
    levels, width = chance.choice((3, 6, 9, 30)), chance.choice((1, 2, 9, 50))
    lists = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'zorbik'] * width)}]\n" for n in range(levels))
    merges = "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}]}}\n" if n else "a0: &a0 {k: v}\n"
        for n in range(levels)
    )
    return chance.choice(
        (lists, merges, "a: &a [*a]\n", "a: [" + "b, " * chance.choice((1000, 30_000, 1_000_000)) + "]")
    ).encode()


def _deep(chance: random.Random) -> bytes:
    opening = chance.choice(("[", "{", "- ", "? ", "{a: ", "[{"))
    return (chance.choice(("", "name: ")) + opening * chance.choice((10, 100, 5000, 50_000))).encode()


def _syntax(chance: random.Random) -> bytes:
    pieces = (*_SYNTAX, *NUMBERS, "name: ", "model: ", "zorbik")
    return "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 30))).encode("utf-8", "surrogatepass")


def _damaged(chance: random.Random) -> bytes:
    data = bytearray(json.dumps(WHOLE, indent=1).encode())
    for _ in range(chance.choice((1, 2, 8))):
        at = chance.randrange(len(data))
        if chance.random() < 0.5:
            data[at] = chance.randrange(256)
        else:
            del data[at : at + 9]
    return bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])


def _bytes(chance: random.Random) -> bytes:
    encoding = chance.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "latin-1"))
    return chance.choice((json.dumps(WHOLE).encode(encoding), chance.randbytes(chance.randrange(200))))


def _setting(chance: random.Random) -> str:
    keys = chance.choice(
        (("seed",), *_places(WHOLE), ("a",) * chance.choice((3, 5000)), (text(chance),), ("__class__",))
    )
    value = chance.choice((text(chance), "".join(chance.choice(_SYNTAX) for _ in range(4)), chance.choice(NUMBERS)))
    return ".".join(keys) + chance.choice(("=", "=", "=", "")) + value.replace("\0", "")
