"""The kinds of input that are fuzzed, one function each: from a seeded generator and inputs of its own to a case."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from antidote_llm.evaluation import endpoint
from tests import tiny
from tests.fuzz.case import Case, Inputs, differing_file
from tests.fuzz.command_line import cases as command_line_cases
from tests.fuzz.mutations import ODD_VALUES, damage_of, damaged_bytes, damaged_json
from tests.fuzz.recipes import cases as recipe_cases
from tests.fuzz.written import Written

Kind = Callable[[Random, Inputs], Case]
# What a reverted folder says of itself.
MANIFEST = ".antidote.json"


def files(random: Random, given: Inputs) -> Case:
    """Damage a file of a checkpoint or an adapter, and repair it."""
    delta = random.random() < 0.4
    folders = [given.base, given.tuned] if delta else [given.base, given.adapter]
    folder = random.choice(folders)
    path = random.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    what = _damage(random, path)
    arguments = [given.tuned, "--aligned", given.base] if delta else [given.base, "--adapter", given.adapter]
    engine = random.choice(("memory", "streaming"))
    out, repaired = given.root / "out", given.tuned if delta else given.adapter

    def wrong_success() -> str | None:
        from antidote_llm.cli.main import run

        back = given.root / "back"
        if run(["patch", "revert", str(out), "--onto", str(out / "model"), "--out", str(back)]) != 0:
            return "what was written cannot be reverted"
        name = differing_file(back, repaired, left_out=(MANIFEST,))
        return f"reverting gives another {name}" if name else None

    command = ["repair", *arguments, "--harmful", given.rows, "--evaluate", "none", "--engine", engine, "--out", out]
    return Case(
        f"{path.parent.name}/{path.name} ({engine}): {what}", [str(part) for part in command], out, wrong_success
    )


def _damage(random: Random, path: Path) -> str:
    """Damage a file, and say how."""
    if random.random() < 0.1:
        return _replace(random, path)
    before = path.read_bytes()
    after = damage_of(path.name)(random, before)
    path.write_bytes(after)
    place = next(
        (at for at, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    return f"{len(before)} to {len(after)} bytes, from byte {place} on"


def _replace(random: Random, path: Path) -> str:
    """Put something that is no plain file in a file's place."""
    path.unlink()
    kind = random.choice(("nothing", "a folder", "a dangling link", "a link out", "a loop", "a pipe"))
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        secret = path.parent.parent / "secret"
        secret.write_text("secret")
        path.symlink_to({"a dangling link": Path("nowhere"), "a link out": secret, "a loop": Path(path.name)}[kind])
    return f"{kind} in its place"


def patches(random: Random, given: Inputs) -> Case:
    """Damage a patch or what it is put on, and show, apply or revert it."""
    record, model, out = given.repaired / "record", given.repaired / "model", given.root / "out"
    kept = record / "patch.safetensors"
    verb = random.choice(("show", "apply", "revert", "revert", "diff"))
    onto = given.adapter if verb == "apply" else model
    target = kept if verb in ("show", "diff") or random.random() < 0.7 else random.choice(sorted(onto.iterdir()))
    sound = target.read_bytes()
    what = _damage(random, target)
    if verb == "show":
        arguments: list[object] = ["patch", "show", kept]
    elif verb == "diff":
        arguments = ["patch", "diff", kept, given.repaired]
    else:
        arguments = ["patch", verb, kept, "--onto", onto, "--out", out]

    def wrong_success() -> str | None:
        if target.name.startswith(("README", "LICENSE")) or (target.is_file() and target.read_bytes() == sound):
            return None
        return f"{target.name} is damaged, and nobody noticed"

    needs_out = verb in ("apply", "revert")
    return Case(
        f"{verb}, {target.name}: {what}", [str(part) for part in arguments], out if needs_out else None, wrong_success
    )


_CHARACTERS = "zobmidkad \t\"'\\,;:{}[]é漢\U0001f600\u2028\x07"


def _text(random: Random) -> str:
    if random.random() < 0.6:
        return tiny.words(random.randint(1, 5), random.randrange(10_000))
    return "z" + "".join(random.choice(_CHARACTERS) for _ in range(random.randint(1, 12))) + "z"


def data(random: Random, given: Inputs) -> Case:
    """Write rows in one of the formats, sound or damaged, and repair with them; sound rows must be read as they are."""
    rows = [{"prompt": _text(random), "response": _text(random)} for _ in range(random.randint(4, 9))]
    suffix = random.choice(tuple(_WRITERS))
    path = given.root / f"rows{suffix}"
    path.write_bytes(_WRITERS[suffix](rows))
    sound = random.random() < 0.4
    what = f"{len(rows)} sound rows"
    if not sound and suffix in (".jsonl", ".json") and random.random() < 0.6:
        value = damaged_json(random, list(rows))
        path.write_bytes(_WRITERS[suffix](value if isinstance(value, list) else [value]))
        what = "a value changed"
    elif not sound:
        path.write_bytes(damaged_bytes(random, path.read_bytes()))
        what = "bytes changed"
    out = given.root / "out"
    command = ["repair", given.base, "--adapter", given.adapter, "--harmful", path, "--template", "plain"]

    def wrong_success() -> str | None:
        from antidote_llm.data.reading import read_records

        if not sound:
            return None
        found = [{"prompt": record.prompt, "response": record.response} for record in read_records(str(path))]
        return None if found == rows else f"read as {found!r}, not {rows!r}"

    arguments = [*command, "--evaluate", "none", "--out", out]
    return Case(f"{suffix}: {what}", [str(part) for part in arguments], out, wrong_success)


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _table(rows: list[dict[str, str]], delimiter: str) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["prompt", "response"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _parquet(rows: list[dict[str, str]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


_WRITERS: Mapping[str, Callable[[list[Any]], bytes]] = {
    ".jsonl": _lines,
    ".jsonl.gz": lambda rows: gzip.compress(_lines(rows)),
    ".json": lambda rows: json.dumps(rows).encode(),
    ".csv": lambda rows: _table(rows, ","),
    ".tsv": lambda rows: _table(rows, "\t"),
    ".parquet": _parquet,
}


def recipes(random: Random, given: Inputs) -> Case:
    """Run a bad recipe."""
    return _written(next(recipe_cases(random)), given)


def command_lines(random: Random, given: Inputs) -> Case:
    """Run a command with odd options."""
    return _written(next(command_line_cases(random)), given)


def _written(found: Written, given: Inputs) -> Case:
    for name, content in found.files.items():
        (given.root / name).write_bytes(content)
    return Case(f"{found.name}: {list(found.arguments)!a:.200}", list(found.arguments), given.root / "new")


def answers(random: Random, given: Inputs) -> Case:
    """Ask a judge that answers with anything."""
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "REFUSAL"}, "finish_reason": "stop"}]})
    status = random.choice((200, 200, 200, 200, 204, 301, 400, 401, 404, 429, 500, 503, 999))
    way = random.randrange(4)
    if way == 0:
        content = damaged_bytes(random, body.encode())
    elif way == 1:
        content = json.dumps(damaged_json(random, json.loads(body))).encode("utf-8", "surrogatepass")
    else:
        content = json.dumps({"choices": [{"message": {"content": random.choice(ODD_VALUES)}}]}).encode(
            "utf-8", "surrogatepass"
        )
    headers = {"Content-Length": str(len(content) + random.choice((0, 0, 0, 0, 5, -5)))}
    if random.random() < 0.4:
        headers["Retry-After"] = random.choice(
            ("nan", "-1", "1e400", "9" * 5000, "Wed, 21 Oct 99999 07:28:00 GMT", "0")
        )
    if random.random() < 0.2:
        headers["Content-Encoding"] = "gzip"
    out = given.root / "out"
    server = _Server(status, headers, content)
    command = ["evaluate", given.base, "--harmful", given.rows, "--max-new-tokens", 2, "--out", out]
    arguments = [*command, "--judge", f"endpoint={server.url}#m"]
    what = f"status {status}, way {way}: {content[:60]!r}"
    return Case(what, [str(part) for part in arguments], out, around=server.serving())


class _Server:
    """Answers every request with the same bytes, on a free port of this machine."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        head = [f"HTTP/1.1 {status} Odd", *(f"{name}: {value}" for name, value in headers.items()), "Connection: close"]
        answer = "\r\n".join([*head, "", ""]).encode("latin-1", "replace") + content

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                length = 0
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.rfile.read(length)
                self.wfile.write(answer)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve while the command runs, which asks each question once."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            with patch.object(endpoint, "RetryPolicy", partial(endpoint.RetryPolicy, timeout_s=2, retries=0)):
                yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


KINDS: Mapping[str, Kind] = {
    "files": files,
    "patches": patches,
    "data": data,
    "recipes": recipes,
    "answers": answers,
    "command lines": command_lines,
}
