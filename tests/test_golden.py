"""Every product of the command line is byte for byte the committed one, where versions and arithmetic are the same.

A change that is meant to change a product commits the new hashes: ``python -m tests.golden FOLDER --write``.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden import COMMITTED, probe_of, versions

_ROOT = Path(__file__).parents[1]
_EXPECTED = json.loads(COMMITTED.read_bytes())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the hashes are of x86-64, this is {platform.machine()}")
    if versions() != _EXPECTED["versions"]:
        pytest.skip(f"the hashes are of {_EXPECTED['versions']}, installed are {versions()}")
    folder = tmp_path_factory.mktemp("golden") / "products"
    command = [sys.executable, "-m", "tests.golden", str(folder)]
    ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", _EXPECTED["sha256"])
def test_a_product_is_the_committed_one(name: str, found: Any) -> None:
    probe = probe_of(name)
    if found["probe"][probe] != _EXPECTED["probe"][probe]:
        pytest.skip(f"this machine's {probe} arithmetic gives other bits than the hashes were made with")
    failed = found["sha256"].get(f"{name.partition('/')[0]}/failed")
    assert failed is None, failed
    assert found["sha256"].get(name) == _EXPECTED["sha256"][name]


def test_every_product_is_committed(found: Any) -> None:
    assert sorted(found["sha256"]) == sorted(_EXPECTED["sha256"])
