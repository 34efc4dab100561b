"""Which files of a checkpoint's folder make it up: weights, configuration, tokenizers, templates, code, documents."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from antidote_llm.errors import UserError
from antidote_llm.io.files import clone_file
from antidote_llm.io.safe_paths import is_plain_path
from antidote_llm.io.strict_json import loose_json

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
CODE_SUFFIX = ".py"
_WEIGHTS_SUFFIX, _INDEX_SUFFIX = ".safetensors", ".index.json"
# A list of what belongs, not of what does not: any other file may be the model as it was before its repair.
_TEXT_SUFFIXES = (
    *(".json", ".model", ".txt", ".jinja", ".md"),
    # Vocabularies: of tiktoken, of GPT-2 and PhoBERT, of Marian, of ProphetNet.
    *(".tiktoken", ".bpe", ".codes", ".spm", ".tokenizer"),
)
_DOCUMENT_NAMES = ("LICENSE*", "NOTICE*", "README*", "COPYING*")
_NAMES = (*_DOCUMENT_NAMES, "*.model.v*")
# What a training leaves with its checkpoint, and hidden files.
_LEFT_BEHIND_STARTS = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args", ".")
# Folders that transformers reads, by name, and what it reads there.
_FOLDERS = {
    "additional_chat_templates": (".jinja",),
    "custom_generate": (CODE_SUFFIX, ".txt", ".md", ".json"),
}
# A folder with one of these is another checkpoint.
_ROOT_FILES = ("config.json", "adapter_config.json", "trainer_state.json")
_TOKENIZER = "tokenizer_config.json"
_MODULES = "modules.json"
_OWN_MANIFEST = ".antidote.json"
# What is fetched from the Hub; its patterns match in folders too. Python code is fetched where it is trusted.
FETCHED = (*(f"*{suffix}" for suffix in (_WEIGHTS_SUFFIX, *_TEXT_SUFFIXES)), *_NAMES)
FETCHED_CODE = f"*{CODE_SUFFIX}"


@dataclass(frozen=True)
class Contents:
    """What is in a checkpoint's folder.

    Attributes:
        files: The names of the files that make it up, relative to the folder, folders inside it by ``/``.
        left_out: The names of all other files; for a folder without any file of the checkpoint, its name and ``/``.
    """

    files: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def code(self) -> tuple[str, ...]:
        """The names of the files of Python code."""
        return tuple(name for name in self.files if name.endswith(CODE_SUFFIX))


def contents(folder: Path, weights: Collection[str]) -> Contents:
    """Separate the files of a checkpoint from others in its folder.

    Only those safetensors files and indices belong that are named: a second copy of the weights in another layout would
    be the model as it was before its repair.

    Args:
        folder: Where the checkpoint is.
        weights: The names of the weight files and of the index that are loaded.

    Raises:
        UserError: A file of the checkpoint has a name that cannot be written down.
    """
    files, left_out = [], []
    modules = _modules(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            inside, outside = _divided(path, modules)
            files += inside
            left_out += outside if inside else [f"{path.name}/"]
        elif _belongs(path.name, weights):
            files.append(path.name)
        elif path.name != _OWN_MANIFEST:
            left_out.append(path.name)
    for name in files:
        if not is_plain_path(name):
            raise UserError(f"{folder}: a file named {name!a}: rename it without control characters")
    return Contents(tuple(files), tuple(map(_shown, left_out)))


def nested_files(folder: Path) -> list[str]:
    """Return the files of a checkpoint that are in folders inside its own, by name: templates, tokenizers, code."""
    return [name for name in contents(folder, ()).files if "/" in name]


def is_document(name: str) -> bool:
    """Whether a file is for people alone, as a README or a licence: no class reads it."""
    path = PurePosixPath(name)
    documents = path.suffix.lower() in ("", ".txt", ".pdf", ".rst") and _is_one_of(path.name, _DOCUMENT_NAMES)
    return path.suffix.lower() == ".md" or documents


def _belongs(name: str, weights: Collection[str]) -> bool:
    lowered = name.lower()
    if lowered.endswith((_WEIGHTS_SUFFIX, _INDEX_SUFFIX)):
        return name in weights
    if name.startswith(_LEFT_BEHIND_STARTS) or lowered.endswith(PICKLE_SUFFIXES):
        return False
    return lowered.endswith((*_TEXT_SUFFIXES, CODE_SUFFIX)) or _is_one_of(name, _NAMES)


def _divided(folder: Path, modules: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the files of a folder inside a checkpoint that belong to it, and the others."""
    if folder.name.startswith(".") or not (suffixes := _suffixes_inside(folder, modules)):
        return [], []
    inside: list[str] = []
    outside: list[str] = []
    for path in _walk(folder):
        name = path.relative_to(folder.parent).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        (outside if hidden or path.suffix.lower() not in suffixes else inside).append(name)
    return inside, outside


def _suffixes_inside(folder: Path, modules: Collection[str]) -> tuple[str, ...]:
    if folder.name in _FOLDERS:
        return _FOLDERS[folder.name]
    if folder.is_symlink():
        return ()
    if folder.name in modules:
        return (*_TEXT_SUFFIXES, CODE_SUFFIX)
    if any((folder / name).exists() for name in _ROOT_FILES):
        return ()
    # Processors keep their second tokenizer in a folder of its own.
    return (*_TEXT_SUFFIXES, CODE_SUFFIX) if (folder / _TOKENIZER).is_file() else (CODE_SUFFIX,)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*names, *links]))


def _modules(folder: Path) -> set[str]:
    """Return the folders that sentence-transformers reads with the model."""
    # If it is missing or broken, such folders are left out, and named.
    found = loose_json(folder / _MODULES)
    modules = found if isinstance(found, list) else []
    return {str(module.get("path")) for module in modules if isinstance(module, dict)}


def _is_one_of(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


_CONFIGURATIONS = "*config.json"
_REPOSITORY = "--"


def require_own_code(folder: Path) -> None:
    """Refuse a checkpoint whose configuration names code by a path that leads out of its folder.

    Code of another repository on the Hub may be named, by its id.

    Raises:
        UserError: Names the configuration and what it names.
    """
    for path in sorted(folder.glob(_CONFIGURATIONS)):
        for named in _named_code(path):
            repository, _, module = named.rpartition(_REPOSITORY)
            elsewhere = repository and (not _is_hub_id(repository) or Path(repository).exists())
            if elsewhere or not is_plain_path(module):
                raise UserError(
                    f"{path}: auto_map names code outside the folder, {named!a}: put it into the folder, and name "
                    "it there as FILE.CLASS"
                )


def _named_code(path: Path) -> Iterator[str]:
    # A broken one is reported by what reads it.
    config = loose_json(path)
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    for value in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def _is_hub_id(name: str) -> bool:
    return is_plain_path(name) and name.count("/") <= 1


_TOKENIZERS = (
    *("tokenizer*", "*/tokenizer*", "vocab*", "merges*", "tekken*", "chat_template*", "additional_chat_templates/*"),
    *("*.model", "*.model.v*", "*.tiktoken", "*.bpe", "*.codes", "*.spm", "*.tokenizer"),
)
# Part of tokenizer.json and tokenizer_config.json since transformers 5, which writes them no more.
_MERGED = ("added_tokens.json", "special_tokens_map.json")
# Processors and their parts, folders of generation code and of sentence-transformers, code, and what the licence asks.
_OTHERS = ("*config.json", "*.py", "custom_generate/*", "*/*", "modules.json", "LICENSE*", "NOTICE*", "COPYING*")


def carry_over(source: Path, target: Path, *, model: bool = True, tokenizer: bool = True) -> list[str]:
    """Copy what a saved model lacks of the folder that it was trained from: processors, templates, vocabularies, code.

    What was saved stays as it is.

    Args:
        source: The folder that it was trained from.
        target: Where it was saved.
        model: Whether what goes with the model is taken over: processors, code and the like.
        tokenizer: Whether what goes with the tokenizer is: it may be another folder's.

    Returns:
        The names of the files that were not taken over: what is said of the other model, as its README and results.
    """
    left = []
    for name in contents(source, ()).files:
        if (target / name).exists() or name in _MERGED:
            continue
        if tokenizer if _is_one_of(name, _TOKENIZERS) else model and _is_one_of(name, _OTHERS):
            clone_file(source / name, target / name)
        else:
            left.append(name)
    return left
