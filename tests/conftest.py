from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests import tiny


@dataclass(frozen=True)
class Folders:
    """A base, an adapter on it, and harmful rows."""

    base: Path
    adapter: Path
    harmful: Path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is read from or left in the user's cache, and nothing asks the Hub."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ANTIDOTE_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield cache


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Read-only to the tests: copy before changing anything."""
    root = tmp_path_factory.mktemp("tiny")
    base = tiny.write_model(root / "base")
    return Folders(base, tiny.write_adapter(root / "adapter", base), tiny.write_rows(root / "harmful.jsonl"))
