"""Rows of data sets on the Hub: only tables of text, without running code or unpickling."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antidote_llm.data.data_spec import require_utf8
from antidote_llm.errors import UserError, first_line
from antidote_llm.io.safe_paths import is_link_out

# Names of the readers of plain tables in datasets; `cache` is a table that was read before.
_PLAIN_READERS = ("csv", "json", "parquet", "arrow", "text", "cache")
# How datasets numbers the files of a split.
_PART = re.compile(r"(?P<before>.*)-(?P<number>[0-9]{5})-of-(?P<of>[0-9]{5})\b.*", re.DOTALL)
# A folder of data holds fewer.
_MOST_ENTRIES = 10_000


def hub_rows(
    name: str, config: str | None, split: str | None, given: str, instead: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a data set row by row.

    Args:
        name: Its id.
        config: Its configuration, where it has several.
        split: The split; None for the only one.
        given: The user's own words, for messages.
        instead: What the user can do where it is unavailable, for messages.

    Returns:
        Each row's origin for messages, and its values by column.

    Raises:
        UserError: It is unavailable or not a table, or its configuration or split is unknown or not named.
    """
    import datasets  # slow to import, and few need it

    try:
        if config is None and len(configs := datasets.get_dataset_config_names(name)) > 1:
            raise UserError(f"{given}: name one of its configurations, as in {name}#CONFIG/SPLIT: {', '.join(configs)}")
        builder = datasets.load_dataset_builder(name, config)
        reader = type(builder).__module__.split(".")[-1]
        if reader not in _PLAIN_READERS:
            raise UserError(f"{given}: a data set of kind '{reader}', no table of text: export the rows to a file")
        split = _split(split, list(builder.info.splits or builder.config.data_files or ()), given)
        with _progress_on_a_terminal():
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(name, error, given, instead) from error
    where = f"{name}#{config}/{split}" if config else f"{name}#{split}"
    yield from _read(rows, where)


@contextmanager
def _progress_on_a_terminal() -> Iterator[None]:
    """Disable the progress bars of datasets where standard error is not a terminal."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _read(rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from antidote_llm.data.table_files import UNREADABLE  # loads pyarrow

    index = 0
    try:
        for row in rows:
            yield f"{where}: row {index}", row
            index += 1
    except (*UNREADABLE, OSError) as error:
        raise UserError(
            f"{where}: row {index}: a value that cannot be read ({first_line(error)}): export the rows to a file"
        ) from error


def folder_rows(folder: Path, split: str | None, given: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a folder of tables as datasets reads it, row by row.

    Args:
        folder: The folder.
        split: A split, or a configuration and one of its splits, as in ``config/train``; None for the only one.
        given: The user's own words, for messages.

    Raises:
        UserError: As for a data set on the Hub; or a link leaves the folder.
    """
    try:
        _require_own_files(folder)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{given}: cannot be looked through ({first_line(error)}): name the data file itself"
        ) from error
    config, _, split = (split or "").rpartition("/")
    return hub_rows(str(folder), config or None, split or None, given, "name a file in it")


def _require_own_files(folder: Path) -> None:
    """Refuse a folder from which a link leaves, or in which a part of a data set is missing."""
    parts: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for count, path in enumerate(folder.rglob("*")):
        if count == _MOST_ENTRIES:
            raise UserError(f"{folder}: a folder of more than {_MOST_ENTRIES:,} files: name the data file itself")
        require_utf8(str(path))
        if is_link_out(path, folder):
            raise UserError(f"{path}: a link that leaves the folder: put the file itself there")
        if (part := _PART.fullmatch(str(path))) is not None:
            parts[f"{part['before']}-*-of-{part['of']}", int(part["of"])].add(int(part["number"]))
    for (name, of), found in parts.items():
        if len(found) < of:
            raise UserError(f"{name}: {len(found)} of {of} files are there: copy the whole folder again")


def hub_file(name: str, file: str, given: str, instead: str) -> Path:
    """Fetch one file of a data set, or find it in the Hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable(name, error, given, instead) from error


def _split(split: str | None, there: Sequence[str], given: str) -> str:
    names = [str(name) for name in there]
    if split is None and len(names) == 1:
        return names[0]
    if split is None or (names and split not in names):
        what = "name one of its splits" if split is None else f"no split '{split}': name one of"
        raise UserError(f"{given}: {what} behind a #: {', '.join(names)}")
    return split


def _unavailable(name: str, error: Exception, given: str, instead: str) -> UserError:
    if Path(name).is_dir():
        return UserError(f"{given}: a folder that cannot be read as data ({first_line(error)}): {instead}")
    reason = f"{type(error).__name__}: {first_line(error)}".rstrip(". ")
    return UserError(
        f"{given}: no such file here, and the Hub did not give the data set {name} ({reason}): check the name and the "
        f"network, log in where its terms must be accepted, or {instead}"
    )
