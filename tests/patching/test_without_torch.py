"""Patches are shown, compared, applied and reverted without torch, transformers or peft."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import antidote_llm
from antidote_llm.io.files import sha256_file
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.patching.patched_copies import PatchedCopies

NAME = "model.safetensors"
_HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub")
# The package's own folder, so that what the package itself imports is not what is looked at.
_START = """
import json, sys, types
package = types.ModuleType("antidote_llm")
package.__path__ = [{folder!r}]
sys.modules["antidote_llm"] = package
"""
_END = """
print(json.dumps(sorted(name for name in {heavy!r} if name in sys.modules)))
"""


def heavy_modules(code: str) -> list[str]:
    """Return which heavy modules a program imports."""
    start = _START.format(folder=str(Path(antidote_llm.__file__).parent))
    program = start + code + _END.format(heavy=_HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, the result of a repair, and the patch."""
    folder = tmp_path_factory.mktemp("patch")
    tensors = {"a": torch.arange(40, dtype=torch.bfloat16), "b": torch.ones(3, 5)}
    for name in ("before", "after"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    save_file(tensors, folder / "before" / NAME)
    sources = {NAME: open_tensor_file(folder / "before" / NAME)}
    with PatchedCopies(sources, [(NAME, "a")], {}, folder / "after", folder / "patch.safetensors") as copies:
        copies.edit(NAME, "a", [tensors["a"] * 2])
        copies.finish()
    return folder


def test_light_modules_import_nothing_heavy() -> None:
    folder = Path(antidote_llm.__file__).parent
    light = [f"antidote_llm.io.{path.stem}" for path in (folder / "io").glob("*.py") if path.stem != "torch_tensors"]
    models = ("checkpoint", "checkpoint_files", "memory_budget", "other_formats", "sites", "tokenizers")
    light += [f"antidote_llm.models.{name}" for name in models]
    light += [
        f"antidote_llm.patching.{name}" for name in ("apply", "description", "diff", "encodings", "patch", "shipping")
    ]
    assert heavy_modules("".join(f"import {name}\n" for name in light)) == []


def test_patches_are_shown_compared_applied_and_reverted_without_heavy_modules(place: Path) -> None:
    code = f"""
from pathlib import Path
from antidote_llm.models.checkpoint import locate, open_model_checkpoint
from antidote_llm.patching.apply import require_fits, require_reverts, transform
from antidote_llm.patching.diff import diff
from antidote_llm.patching.patch import read_patch
from antidote_llm.patching.shipping import copy_checkpoint, shipped_sha256, shipping
place = Path({str(place)!r})
patch = read_patch(place / "patch.safetensors")
assert patch.description.tensors[0].key == "a"
assert diff(patch, patch)[0].jaccard == 1
before = locate(str(place / "before"))
assert open_model_checkpoint(str(before)).sha256
require_fits(patch, before)
transform(patch, before, place / "applied", "apply")
require_reverts(patch, place / "applied")
transform(patch, place / "after", place / "reverted", "revert")
copy_checkpoint(before, place / "copied")
shipped_sha256(before, shipping(before).files)
"""
    assert heavy_modules(code) == []
    assert sha256_file(place / "applied" / NAME) == sha256_file(place / "after" / NAME)
    assert sha256_file(place / "reverted" / NAME) == sha256_file(place / "before" / NAME)
    assert torch.equal(load_file(place / "applied" / NAME)["a"], 2 * torch.arange(40, dtype=torch.bfloat16))


def test_reading_values_as_tensors_imports_torch(place: Path) -> None:
    code = f"""
from pathlib import Path
from antidote_llm.io.safetensors_files import open_tensor_file
open_tensor_file(Path({str(place / "before" / NAME)!r})).read("a")
"""
    assert heavy_modules(code) == ["torch"]
