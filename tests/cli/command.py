"""Runs the real command in this process, and looks at what it left behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.cli.main import run
from antidote_llm.io.files import sha256_file
from tests.conftest import Folders


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what was wrong."""
        return [line for line in self.err.splitlines() if line.startswith(("error:", "internal error:"))]

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Command:
    """``antidote``."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Result:
        """Run it."""
        self.capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        said = self.capsys.readouterr()
        return Result(code, said.out, said.err)

    def done(self, *arguments: object) -> Result:
        """Run it; it must end well."""
        result = self(*arguments)
        assert result.code == 0, result.err
        return result


@dataclass(frozen=True)
class Place:
    """Inputs that a test may break, and where the result is to go: two folders deep, neither of them there."""

    root: Path
    base: Path
    adapter: Path
    harmful: Path
    out: Path

    def repair(self, *more: object) -> list[object]:
        """Return the arguments of a repair without evaluation."""
        plain = ["repair", self.base, "--adapter", self.adapter, "--harmful", self.harmful, "--evaluate", "none"]
        return [*plain, "--out", self.out, *more]

    def write(self, name: str, text: str | bytes) -> Path:
        """Write a file beside the inputs."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path


def inputs(root: Path, folders: Folders) -> Place:
    """Copy the tiny folders."""
    base, adapter = shutil.copytree(folders.base, root / "base"), shutil.copytree(folders.adapter, root / "adapter")
    harmful = Path(shutil.copy(folders.harmful, root / "harmful.jsonl"))
    return Place(root, Path(base), Path(adapter), harmful, root / "results" / "of today" / "repaired")


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """Return everything below a folder, hidden things too: hash and time of change by name."""
    return {
        str(path.relative_to(root)): (sha256_file(path) if path.is_file() else "", path.lstat().st_mtime_ns)
        for path in root.rglob("*")
    }


def edit_json(path: Path, **changes: object) -> None:
    """Change entries of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
