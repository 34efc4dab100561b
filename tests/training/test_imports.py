"""What help, option errors and plug-ins import of these rooms needs neither torch nor the libraries on top of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import antidote_llm

ROOT = Path(antidote_llm.__file__).parent
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow", "numpy")
LIGHT = (
    *(f"{room}.{path.stem}" for room in ("alignment", "finetuning") for path in sorted((ROOT / room).glob("[!_]*.py"))),
    *(f"training.{name}" for name in ("batches", "defense", "objective", "record", "settings")),
    *(f"miniature.{name}" for name in ("architectures", "build", "exchanges", "oracle", "recipe", "world")),
)
SCRIPT = """
import importlib, sys
for name in sys.argv[2].split():
    importlib.import_module(f"antidote_llm.{name}")
from antidote_llm.training.defense import defenses
assert "vaccine" in defenses("alignment") and "lisa" in defenses("finetuning")
print([name for name in sys.argv[1].split() if name in sys.modules])
"""


def test_defenses_settings_and_records_are_imported_without_torch() -> None:
    assert {"alignment.booster", "finetuning.ldifs"} < set(LIGHT)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, " ".join(HEAVY), " ".join(LIGHT)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
