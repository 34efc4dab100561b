"""The hashes of the files that a result is made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from antidote_llm.io.files import sha256_file
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.checkpoint_files import is_document, nested_files
from antidote_llm.patching.shipping import shipping

if TYPE_CHECKING:
    from antidote_llm.models.load import LoadedModel

_TOKENIZER_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")


def files_sha256(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the hashes of all files that ship with a checkpoint, but for documents, by name."""
    names = [name for name in shipping(checkpoint.folder).files if not is_document(name)]
    return {name: checkpoint.sha256.get(name) or sha256_file(checkpoint.folder / name) for name in names}


def inputs_sha256(opened: LoadedModel, aligned: Checkpoint | None = None) -> dict[str, Any]:
    """Return the hashes of all files that shape what a model answers: weights, configuration, tokenizer, code."""
    checkpoints = [*opened.checkpoints, *([aligned] if aligned else [])]
    found: dict[str, Any] = {"checkpoints": [files_sha256(checkpoint) for checkpoint in checkpoints]}
    if opened.tokenizer is not None:
        found["tokenizer"] = _tokenizer_sha256(opened.tokenizer.name_or_path)
    return found


def _tokenizer_sha256(reference: str) -> dict[str, str] | str:
    """Return the hashes of the files beside a tokenizer and in its folders, or the Hub id that it was fetched by."""
    folder = Path(reference)
    if not folder.is_dir():
        return reference
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in _TOKENIZER_SUFFIXES and path.is_file()]
    return {name: sha256_file(folder / name) for name in sorted([*names, *nested_files(folder)])}
