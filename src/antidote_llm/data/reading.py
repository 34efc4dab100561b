"""Reads a data argument: a file, a preset by its name, or a data set on the Hub."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

from antidote_llm.data.data_spec import DataSpec, Field, quoted
from antidote_llm.data.files import bounded, file_rows, has_known_suffix, is_file, is_folder, is_special
from antidote_llm.data.hub import folder_rows, hub_file, hub_rows
from antidote_llm.data.preset_rows import LeftOutError, RawRow
from antidote_llm.data.presets import PRESETS, Preset
from antidote_llm.data.records import Record
from antidote_llm.data.rows import Row
from antidote_llm.data.saved_folders import is_saved_folder, require_no_model, saved_rows
from antidote_llm.errors import UserError

DATA_VARIABLE = "ANTIDOTE_DATA"
_HUB_ID = re.compile(r"(?P<id>[\w.-]*\w[\w.-]*/[\w.-]+)(#((?P<config>[^/#]+)/)?(?P<split>[^/#]+))?")
_log = logging.getLogger(__name__)
# Words in a column's name, and the field that it most likely holds.
_LIKELY: tuple[tuple[tuple[str, ...], Field], ...] = (
    (("system", "developer", "persona"), "system"),
    (("history",), "history"),
    (("response", "reasoning", "think", "thought"), "response"),
    (("input", "suffix", "choice", "option", "query", "question"), "input"),
)

Rows: TypeAlias = Iterator[tuple[str, Mapping[str, Any]]]


def read_records(spec: DataSpec | Path | str, require: Iterable[Field] = ()) -> list[Record]:
    """Read every row of a data set.

    Args:
        spec: A file; a folder of data, with a split where it has several, as in ``folder#train``; the name of a
            preset, or ``NAME@PATH`` for a preset's own file; or a Hub id with a split, as in ``org/name#train``. All
            but presets may have a column mapping where columns have other names. An existing file or folder takes
            precedence over any other meaning of its name.
        require: Fields that a row of prompt and response must have; rows of ``text`` or ``input_ids`` are complete.

    Raises:
        UserError: The data are missing, empty or malformed, a column is missing, a row lacks a required field or holds
            values that cannot be read, or they have a weight, which only ``mixing.read_mixed`` can use.
    """
    if not isinstance(spec, DataSpec):
        spec = DataSpec.parse(str(spec))
    if spec.weight is not None:
        raise UserError(f"{spec.path}: a weight is only for files that are mixed: leave weight={spec.weight:g} out")
    needed = tuple(require)
    if (named := _preset(spec)) is not None:
        records = _preset_records(*named, spec, needed)
    else:
        records = _mapped_records(spec, needed)
    if not records:
        raise UserError(f"{spec.path} has no rows: fill it, or name other data")
    return records


def _preset(spec: DataSpec) -> tuple[Preset, str | None] | None:
    """Return the named preset and the path after its name, if any; None where no preset is named."""
    name, at, path = str(spec.path).partition("@")
    if is_file(spec.path) or (name not in PRESETS and not at):
        return None
    if name not in PRESETS:
        if "/" in name or Path(name).suffix:
            return None
        raise UserError(f"{spec.path}: no such file, and {_no_preset(name)}")
    if spec.columns:
        mapped = ",".join(f"{field}={column}" for field, column in spec.columns.items())
        raise UserError(f"{spec.path}: a preset knows its own columns: leave {mapped} out, or name the file alone")
    if spec.ignored:
        raise UserError(f"{spec.path}: a preset knows its own columns: leave ignore={spec.ignored[0]} out")
    return PRESETS[name], path if at else None


def _no_preset(name: str) -> str:
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no preset '{name}': {hint}there are {', '.join(PRESETS)}"


def _mapped_records(spec: DataSpec, require: tuple[Field, ...]) -> list[Record]:
    """Read rows by their columns, and warn of columns that may matter and are not read."""
    records: list[Record] = []
    unread: Counter[str] = Counter()
    unread_in_messages: Counter[str] = Counter()
    missing = set(spec.ignored)
    for origin, cells in _rows(spec.path, spec.rows):
        row = Row(cells, origin, spec.columns, spec.ignored)
        record = row.record(require)
        records.append(record)
        unread.update(row.unread(record))
        unread_in_messages.update(row.unread_in_messages())
        if missing:
            missing -= row.names()
    if missing and records:
        raise UserError(f"{spec.path}: no row has the column '{min(missing)}' to ignore: check the name")
    for counts, where in ((unread, ""), (unread_in_messages, " in their messages")):
        for name, count in counts.items():
            remedy = f"map it, as in {_mapping_of(name)}, or pass" if not where and name != "label" else "pass"
            _log.warning(
                "%s: %d of %d rows have '%s'%s, which is not read: %s ignore=%s to leave it out",
                *(spec.path, count, len(records), name, where, remedy, quoted(name)),
            )
    return records


def _mapping_of(name: str) -> str:
    """Return the mapping that most likely fits a column."""
    plain = name.lower()
    field = next((field for words, field in _LIKELY if any(word in plain for word in words)), "context")
    return f"{field}={quoted(name)}"


def _rows(path: Path, rows: int | None) -> Rows:
    given = str(path)
    if is_file(path):
        return file_rows(path, rows=rows)
    folder, _, split = (given, "", "") if is_folder(path) else given.rpartition("#")
    if folder and is_folder(Path(folder)):
        return bounded(_folder_rows(Path(folder), split or None, given), rows, path)
    if has_known_suffix(path) or path.is_absolute():
        return file_rows(path, rows=rows)
    if (match := _HUB_ID.fullmatch(given)) is not None:
        found = hub_rows(match["id"], match["config"], match["split"], given, "name a file")
        return bounded(found, rows, path)
    if path.suffix or "/" in given or is_special(path):
        return file_rows(path, rows=rows)
    raise UserError(f"{given}: no such file, and {_no_preset(given)}; or name a Hub id, as in org/name#train")


def _folder_rows(folder: Path, split: str | None, given: str) -> Rows:
    require_no_model(folder)
    if is_saved_folder(folder):
        return saved_rows(folder, split)
    return folder_rows(folder, split, given)


def _preset_records(preset: Preset, path: str | None, spec: DataSpec, require: tuple[Field, ...]) -> list[Record]:
    given = str(spec.path)
    if "response" in require and not preset.answers:
        raise UserError(f"{given}: its rows have no responses, which are needed here: name data that have them")
    records: list[Record] = []
    left_out: Counter[str] = Counter()
    for origin, cells in islice(_preset_rows(preset, path, given), spec.rows):
        try:
            record = preset.read(RawRow(cells, origin))
            if record is not None:
                records.append(_complete(record, require))
        except LeftOutError as error:
            left_out[str(error)] += 1
    total = len(records) + sum(left_out.values())
    for reason, count in left_out.items():
        _log.warning("%s: %d of %d rows left out: %s", given, count, total, reason)
    return records


def _complete(record: Record, require: tuple[Field, ...]) -> Record:
    """Return a record with None for an empty response; refuse an empty prompt."""
    if record.text is not None:
        return record
    if not (record.prompt or "").strip():
        raise LeftOutError("their prompt is empty")
    if record.response is not None and record.response.strip():
        return record
    if "response" in require:
        raise LeftOutError("their response is empty")
    return replace(record, response=None)


def _preset_rows(preset: Preset, path: str | None, given: str) -> Rows:
    if path is not None:
        return file_rows(_own_file(preset, Path(path).expanduser(), given), preset.header)
    if (local := _local_file(preset)) is not None:
        return file_rows(local, preset.header)
    if preset.hub is None:
        raise UserError(
            f"{given}: not on the Hub: fetch it from {preset.home} and pass {preset.name}@FILE, "
            f"or put it into the folder of {DATA_VARIABLE} as {preset.files[0]}"
        )
    hub, instead = preset.hub, f"pass {preset.name}@FILE"
    if hub.file is not None:
        return file_rows(hub_file(hub.id, hub.file, given, instead))
    return chain.from_iterable(hub_rows(hub.id, config, hub.split, given, instead) for config in hub.configs)


def _local_file(preset: Preset) -> Path | None:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return None
    root = Path(folder).expanduser()
    if not is_folder(root):
        raise UserError(f"{DATA_VARIABLE}={folder}: no such folder: name the one that holds the data, or unset it")
    return next((root / name for name in preset.files if is_file(root / name)), None)


def _own_file(preset: Preset, path: Path, given: str) -> Path:
    """Return the file that a path after a preset's name means; in a folder, the preset's own file."""
    if not is_folder(path):
        return path
    names = [name for file in preset.files for name in (file, Path(file).name)]
    found = next((path / name for name in names if is_file(path / name)), None)
    if found is None:
        raise UserError(f"{given}: the folder holds none of {', '.join(names)}: name the file itself")
    return found
