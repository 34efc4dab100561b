"""Data sets come over HTTP from a Hub, through its own client, and later from its cache without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.public_rows import FILES, write_parquet
from tests.data.stand_in_hub import serving

GATED = "walledai/AdvBench"
ROWS = [{"goal": f"zob {index}", "target": "mid"} for index in range(3)]
# The Hub's library reads its address and offline mode when it is imported.
READ = """
import json, sys
from antidote_llm.data.reading import read_records
from antidote_llm.errors import UserError
for name in sys.argv[1:]:
    try:
        print(json.dumps([record.prompt for record in read_records(name)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The folder that the stand-in Hub serves."""
    root = tmp_path / "served"
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        write_parquet(root / "org/name/data" / f"{split}-00000-of-00001.parquet", rows)
    write_parquet(root / GATED / "data/train-00000-of-00001.parquet", [{"prompt": "zob", "target": "mid"}])
    FILES["beavertails-refusal"].write(root)
    (root / "anonymous4486").mkdir()
    (root / "beavertails").rename(root / "anonymous4486/repnoise_beavertail")
    return root


def read(home: Path, names: list[str], **environment: str) -> list[list[str] | str]:
    """Read data sets in a separate process and folder."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ANTIDOTE_"))}
    done = subprocess.run(
        [sys.executable, "-c", READ, *names],
        env={**kept, "HF_HOME": str(home), **environment},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_data_sets_are_fetched_once_and_unavailable_ones_are_reported(served: Path, tmp_path: Path) -> None:
    had = ["org/name#train:prompt=goal", "org/name#test:prompt=goal", "beavertails-refusal"]
    home = tmp_path / "home"
    with serving(served, gated=GATED) as url:
        *rows, splits, nowhere, gated = read(home, [*had, "org/name", "org/nowhere", "advbench"], HF_ENDPOINT=url)
    assert rows == [["zob 0", "zob 1", "zob 2"], ["zob 0"], ["zob?"]]
    assert splits == "org/name: name one of its splits behind a #: train, test"
    assert "the Hub did not give the data set org/nowhere" in nowhere and "doesn't exist" in nowhere
    assert f"'{GATED}' is a gated dataset" in gated and str(gated).endswith("or pass advbench@FILE")
    assert read(home, had, HF_ENDPOINT=url, HF_HUB_OFFLINE="1") == rows
