from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Command, Place, inputs
from tests.conftest import Folders


@pytest.fixture
def antidote(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, run in this process."""
    return Command(capsys)


@pytest.fixture
def place(tmp_path: Path, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Inputs of this test's own, in an otherwise empty current folder."""
    monkeypatch.chdir(tmp_path)
    return inputs(tmp_path, folders)
