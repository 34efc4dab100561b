"""Which files of a checkpoint's folder ship with it, and how they get into another folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from antidote_llm.artifacts import sha256_file
from antidote_llm.artifacts.files import clone_file, link_file
from antidote_llm.errors import changed_meanwhile
from antidote_llm.models.checkpoint import FileStamp, weight_file_names
from antidote_llm.models.tensor_files import open_tensor_file

# By what it is and not by what it is not: whatever else lies there may be the model as it was before its repair.
_SHIPPED_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".md", ".tiktoken", ".bpe", ".spm", ".py")
_SHIPPED_NAMES = ("LICENSE*", "NOTICE*", "*.model.v*")
# What a training leaves beside its checkpoint, and what is hidden.
_LEFT_BEHIND_STARTS = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args", ".")
# May change in a result: a model card is meant to get a section.
DOCUMENT = ".md"
_INDEX = "model.safetensors.index.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def shipped_files(folder: Path, weights: Collection[str] | None = None) -> list[Path]:
    """Return the files of a checkpoint's folder that make it up: weights, configuration, tokenizer, code, documents.

    Of safetensors files and of indices only those that transformers and peft load: a second copy of the weights in
    another layout would ship the model as it was before its repair.

    Args:
        folder: Where the checkpoint lies.
        weights: The names of its weight files, where they are known: a file that has gone since is not missed here.

    Raises:
        UserError: The weights are not known, and the folder's index is broken or a shard is missing.
    """
    loaded = _loaded_weights(folder, weights)
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(_LEFT_BEHIND_STARTS)
        and (path.suffix.lower() in _SHIPPED_SUFFIXES or any(map(path.match, _SHIPPED_NAMES)))
        and (path.name in loaded or not path.name.lower().endswith((".safetensors", ".index.json")))
    )


def copy_checkpoint(
    folder: Path,
    target: Path,
    weights: Collection[str] | None = None,
    *,
    leave_out: frozenset[str] = frozenset(),
    hard_links: bool = False,
) -> None:
    """Copy the files that ship, but for those named; the copies share the blocks of the originals where the disk can.

    A hard link, for weights only, is the same file under a second name: whoever writes into one writes into both.

    Raises:
        UserError: A file has gone meanwhile.
    """
    for path in shipped_files(folder, weights):
        if path.name not in leave_out:
            place = link_file if hard_links and path.suffix.lower() == ".safetensors" else clone_file
            try:
                place(path, target / path.name)
            except FileNotFoundError as error:
                raise changed_meanwhile(path) from error


def shipped_stamps(folder: Path, weights: Collection[str] | None = None) -> dict[str, FileStamp]:
    """Return what the files that ship look like, by name: as :func:`shipped_files`.

    Raises:
        UserError: As :func:`shipped_files`; or a file has gone meanwhile.
    """
    found = {}
    for path in shipped_files(folder, weights):
        try:
            found[path.name] = FileStamp.of(path)
        except FileNotFoundError as error:
            raise changed_meanwhile(path) from error
    return found


def shipped_sha256(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Return the hashes of files that ship, but for documents, by name.

    Raises:
        UserError: A weight file is truncated, or a file has gone meanwhile.
    """
    found = {}
    for path in (folder / name for name in sorted(names) if not name.lower().endswith(DOCUMENT)):
        if path.suffix.lower() == ".safetensors":
            open_tensor_file(path)
        try:
            found[path.name] = sha256_file(path)
        except FileNotFoundError as error:
            raise changed_meanwhile(path) from error
    return found


def require_unchanged(folder: Path, before: Mapping[str, FileStamp], weights: Collection[str] | None = None) -> None:
    """Refuse a folder whose files that ship are no longer those that :func:`shipped_stamps` found.

    Raises:
        UserError: Names the file.
    """
    after = shipped_stamps(folder, weights)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise changed_meanwhile(folder / name)


def _loaded_weights(folder: Path, weights: Collection[str] | None) -> set[str]:
    if weights is None:
        whole = (folder / "model.safetensors").is_file() or not (folder / _INDEX).is_file()
        weights = () if whole else weight_file_names(folder, "model.safetensors")
    sharded = set(weights) - set(_WEIGHTS)
    return {*_WEIGHTS, *sharded, *([_INDEX] if sharded else [])}
