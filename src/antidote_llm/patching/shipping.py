"""Which files of a checkpoint's folder ship with it."""

from __future__ import annotations

from pathlib import Path

from antidote_llm.artifacts.files import copy_file

# Optimizer states and training arguments lie beside many checkpoints; most are pickles, none belongs to the model.
_SHIPPED_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".md", ".tiktoken", ".py")
_LEFT_BEHIND = ("trainer_state.json", "optimizer.safetensors", "scheduler.safetensors")


def shipped_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's folder that make it up: weights, configuration, tokenizer, documents."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix.lower() in _SHIPPED_SUFFIXES
        and path.name not in _LEFT_BEHIND
    )


def copy_checkpoint(folder: Path, target: Path, *, leave_out: frozenset[str] = frozenset()) -> None:
    """Copy the files that ship, but for those named."""
    for path in shipped_files(folder):
        if path.name not in leave_out:
            copy_file(path, target / path.name)
