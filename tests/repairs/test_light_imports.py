"""What help and option errors need of the repairs is imported without torch, transformers and peft."""

from __future__ import annotations

import subprocess
import sys

LIGHT = """
import sys
import antidote_llm.calibration.settings, antidote_llm.repairs.record
from antidote_llm.repairs.method import methods
for method in methods().values():
    method.configure({}), method.summary
print(*sorted({"torch", "transformers", "peft"} & sys.modules.keys()))
"""


def test_methods_settings_and_records_need_no_torch() -> None:
    found = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
