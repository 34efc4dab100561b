"""A Hub on localhost: serves folders as data set repositories, as far as the Hub's own client needs it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(root: Path, *, gated: str = "") -> Iterator[str]:
    """Serve ``root/org/name`` as the data set ``org/name``; requests for the gated one are refused."""

    class Handler(_Handler):
        folder, closed = root, gated

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    closed: str

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:1] == ["api"]:
            parts = parts[1:]
        name, rest = "/".join(parts[1:3]), parts[3:]
        repository = self.folder / name
        if parts[:1] != ["datasets"] or not repository.is_dir():
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["resolve"]:
            self._file(name, repository, "/".join(rest[2:]))
        elif rest[:1] == ["tree"]:
            self._send(200, _listed(repository, "/".join(rest[2:]), "recursive=true" in self.path.lower()))
        elif rest[:1] == ["paths-info"]:
            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            found = [entry for entry in _listed(repository, "", True) if entry["path"] in wanted]
            self._send(200, found)
        else:
            siblings = [{"rfilename": path.relative_to(repository).as_posix()} for path in _files(repository)]
            self._send(200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _file(self, name: str, repository: Path, path: str) -> None:
        if name == self.closed:
            self._send(
                403, {"error": "gated"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            )
        elif not (repository / path).is_file():
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        else:
            content = (repository / path).read_bytes()
            tag = hashlib.sha1(content).hexdigest()
            self._bytes(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _files(repository: Path) -> list[Path]:
    return sorted(path for path in repository.rglob("*") if path.is_file())


def _listed(repository: Path, below: str, recursive: bool) -> list[dict[str, Any]]:
    folder = repository / below
    return [_entry(repository, path) for path in sorted(folder.rglob("*") if recursive else folder.glob("*"))]


def _entry(repository: Path, path: Path) -> dict[str, Any]:
    place = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": place, "size": 0, "oid": hashlib.sha1(place.encode()).hexdigest()}
    content = path.read_bytes()
    return {"type": "file", "path": place, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
