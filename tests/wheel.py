"""The wheel, installed into empty environments, works without the checkout.

    python -m tests.wheel [--light-only]

Builds the wheel, installs it with everything that it needs into an empty environment, and uses its command, recipes,
templates and Python functions there. Where Python 3.10 and 3.13 are found, the part that needs no torch (help, errors,
recipes, patches, comparisons) runs under them too: torch is a download of gigabytes there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the light part imports; the versions are those that pip finds.
LIGHT = ("jinja2", "numpy", "psutil", "pyarrow", "pydantic", "pyyaml", "rich", "safetensors", "scipy", "typer")
OTHER_PYTHONS = ("python3.10", "python3.13")
LIGHT_CODE = """
import sys
from antidote_llm.cli.main import run
from antidote_llm.workflows.recipe_file import read_recipe, shipped_recipes
assert shipped_recipes() == ["paper/gemma-7b", "paper/llama2-7b", "paper/mistral-7b"]
assert read_recipe("paper/llama2-7b").repair.method == "antidote"
assert run(["repair", "--help"]) == 0 and run(["finetune", "--help"]) == 0 and run(["compare", "--help"]) == 0
assert run(["repair", "model", "--alpha", "9", "--dry-run"]) == 2
assert run(["patch", "show", "nowhere"]) == 2 and run(["compare", "nowhere", "elsewhere"]) == 2
assert "torch" not in sys.modules
"""
FULL_CODE = """
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
import antidote_llm as antidote
config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained("base")
adapted = get_peft_model(LlamaForCausalLM.from_pretrained("base"), LoraConfig(r=4, init_lora_weights=False))
adapted.save_pretrained("adapter")
result = antidote.repair("base", adapter="adapter", method="magnitude", evaluate="none", out="repaired")
assert result.verdict.kind == "unknown" and "<html" in Path("repaired/record/report.html").read_text()
reverted = antidote.revert_patch(result.patch, onto=result.model_dir, out="original")
name = "adapter_model.safetensors"
assert (reverted.out / name).read_bytes() == Path("adapter", name).read_bytes()
"""


def main() -> None:
    """Build the wheel and try it."""
    parser = argparse.ArgumentParser(description="Tries the wheel in empty environments.")
    parser.add_argument("--light-only", action="store_true", help="leave out the environment with torch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="antidote-wheel-") as folder:
        place = Path(folder)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run([*pip, "wheel", "--no-deps", "--wheel-dir", str(place), str(ROOT)], place)
        (wheel,) = place.glob("*.whl")
        if not given.light_only:
            python = environment(sys.executable, place / "full")
            constraints = ["--constraint", str(ROOT / "constraints.txt")]
            install(python, [*constraints, "torch"], place)
            install(python, [*constraints, str(wheel)], place)
            run([str(python), "-c", LIGHT_CODE], place)
            run([str(python), "-c", FULL_CODE], place)
            run([str(python.with_name("antidote")), "patch", "show", "repaired"], place)
            say(f"{sys.version_info.major}.{sys.version_info.minor}: all of it")
        for name in OTHER_PYTHONS:
            interpreter = found(name)
            if interpreter is None:
                say(f"{name}: not found here, not tried")
                continue
            python = environment(interpreter, place / name)
            install(python, ["--no-deps", str(wheel)], place)
            install(python, list(LIGHT), place)
            run([str(python), "-c", LIGHT_CODE], place)
            say(f"{name}: the part without torch")


def found(name: str) -> str | None:
    """Return an interpreter that starts: one of the path, or one that pyenv keeps."""
    version = name.removeprefix("python")
    kept = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob(f"versions/{version}.*/bin/{name}")
    for candidate in (name, *map(str, sorted(kept))):
        try:
            if subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
                return candidate
        except FileNotFoundError:
            continue
    return None


def say(text: str) -> None:
    """Say what was tried."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def environment(python: str, folder: Path) -> Path:
    """Make an empty environment, and return its Python."""
    run([python, "-m", "venv", str(folder)], folder.parent)
    return folder / "bin" / "python"


def install(python: Path, words: list[str], place: Path) -> None:
    """Install packages into an environment."""
    run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *words], place)


def run(words: list[str], cwd: Path) -> None:
    """Run a command away from the checkout; what it says is shown where it fails."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "ANTIDOTE_CACHE": str(cwd / "cache")}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(f"failed: {' '.join(words)[:200]}")


if __name__ == "__main__":
    main()
