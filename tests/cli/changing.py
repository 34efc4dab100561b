"""Lets files change while a command reads them, and holds the command to one line about it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Result


def said(result: Result, *words: str) -> None:
    """Hold a result to one line of error with these words."""
    assert result.code == 2, result.err
    assert len(result.errors) == 1 and "Traceback" not in result.err
    assert all(word in result.errors[0] for word in words), result.errors[0]
    assert result.out == ""


def rewritten(path: Path) -> None:
    """Save a file of the same size again."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-4] + b"\x00\x00\x00\x40")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES: dict[str, Callable[[Path], None]] = {"rewritten": rewritten, "deleted": Path.unlink, "cut": cut}


def meanwhile(monkeypatch: pytest.MonkeyPatch, step: str, happens: Callable[[], object]) -> None:
    """Let something happen once, just before a step."""
    module, _, function = step.rpartition(".")
    owner = importlib.import_module(module)
    original, pending = getattr(owner, function), [happens]

    def wrapped(*given: Any, **more: Any) -> Any:
        if pending:
            pending.pop()()
        return original(*given, **more)

    monkeypatch.setattr(owner, function, wrapped)
