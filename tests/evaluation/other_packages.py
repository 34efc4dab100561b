"""Installs other packages, with real metadata, into a temporary folder that Python searches."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    distribution: str,
    group: str,
    entries: Mapping[str, str],
    source: str = "",
) -> None:
    """Install a distribution of one module with entry points.

    Args:
        folder: Where it is installed.
        monkeypatch: Undoes it.
        distribution: Its name; the module's is the same with underscores.
        group: The group of its entry points.
        entries: By the name of each entry point, the object of the module that it names.
        source: The module's code.
    """
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(dedent(source))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {module}:{target}" for name, target in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.invalidate_caches()
