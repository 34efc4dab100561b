"""Help, option errors and comparisons import the data, decision and report rooms: that loads no heavy library."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "tokenizers", "datasets", "safetensors", "huggingface_hub")
SCRIPT = """
import sys
from importlib import import_module
from pkgutil import iter_modules

room = import_module(sys.argv[1])
for module in iter_modules(room.__path__):
    import_module(f"{room.__name__}.{module.name}")
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""


@pytest.mark.parametrize("room", ["data", "decision", "report"])
def test_importing_a_room_loads_no_heavy_library(room: str) -> None:
    command = [sys.executable, "-c", SCRIPT, f"antidote_llm.{room}", *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []


def test_reading_loads_pyarrow_only_for_tables() -> None:
    script = "import sys; import antidote_llm.data.mixing; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
