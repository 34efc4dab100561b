"""Reads the folders that ``save_to_disk`` of datasets writes: .arrow files, or one such folder for each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from antidote_llm.data.data_spec import require_utf8
from antidote_llm.data.files import is_file
from antidote_llm.errors import UserError
from antidote_llm.io.safe_paths import is_link_out
from antidote_llm.io.strict_json import parse_json

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_MODEL_FILES = ("config.json", "adapter_config.json")


def is_saved_folder(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return is_file(folder / _STATE) or is_file(folder / _SPLITS)


def require_no_model(folder: Path) -> None:
    """Refuse a model's folder."""
    if found := [name for name in _MODEL_FILES if is_file(folder / name)]:
        raise UserError(f"{folder}: a model's folder ({found[0]}), no data: name a data file")


def saved_rows(folder: Path, split: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a folder that ``save_to_disk`` wrote, row by row.

    Args:
        folder: The folder.
        split: The split, where it holds several; None for the only one.

    Raises:
        UserError: A file is missing or damaged, or the split is unknown or not named.
    """
    if is_file(folder / _SPLITS):
        yield from _table(folder / _split(folder, split))
    elif split is not None:
        raise UserError(f"{folder}: a folder without splits: leave #{split} out")
    else:
        yield from _table(folder)


def _split(folder: Path, split: str | None) -> str:
    names = _names(folder / _SPLITS, "splits")
    if split is None and len(names) == 1:
        return names[0]
    if split is None or split not in names:
        what = "name one of its splits" if split is None else f"no split '{split}': name one of them"
        raise UserError(f"{folder}: {what}, as in {folder.name}#{names[0] if names else 'train'}: {', '.join(names)}")
    return split


def _table(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from antidote_llm.data.table_files import arrow_rows  # loads pyarrow

    if not is_file(folder / _STATE):
        raise UserError(f"{folder / _STATE}: missing: copy the whole folder again")
    names = _names(folder / _STATE, "_data_files", "filename")
    if _is_selection(folder / _STATE):
        raise UserError(
            f"{folder / _STATE}: a selection of the rows in this folder, as old versions of datasets kept it: load it "
            "with a newer one and save it again"
        )
    for name in names:
        file = folder / name
        if not is_file(file):
            raise UserError(f"{file}: missing, though {_STATE} names it: copy the whole folder again")
        yield from arrow_rows(file, None)


def _is_selection(state: Path) -> bool:
    return bool(parse_json(state.read_bytes()).get("_indices_data_files"))


def _names(path: Path, key: str, inner: str | None = None) -> list[str]:
    """Return the names that a file of the folder lists, each of an entry in the folder itself."""
    try:
        listed = parse_json(path.read_bytes())[key]
        names = [entry if inner is None else entry[inner] for entry in listed]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: not as save_to_disk writes it: copy the whole folder again") from error
    for name in names:
        if (
            not isinstance(name, str)
            or not name
            or Path(name).name != name
            or is_link_out(path.parent / name, path.parent)
        ):
            raise UserError(f"{path}: names '{name}', nothing in its folder: copy the whole folder again")
        require_utf8(name)
    return names
