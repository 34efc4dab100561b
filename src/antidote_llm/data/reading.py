"""Reads a data argument: a file, a preset by its name, or a data set on the Hub."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from antidote_llm.data.files import SUFFIXES, file_rows
from antidote_llm.data.hub import hub_file, hub_rows
from antidote_llm.data.presets import PRESETS, Preset
from antidote_llm.data.raw_rows import LeftOutError, RawRow
from antidote_llm.data.records import Record
from antidote_llm.data.rows import Row
from antidote_llm.data.spec import DataSpec, Field
from antidote_llm.errors import UserError

DATA_VARIABLE = "ANTIDOTE_DATA"
_HUB_ID = re.compile(r"(?P<id>[\w.-]*\w[\w.-]*/[\w.-]+)(#((?P<config>[^/#]+)/)?(?P<split>[^/#]+))?")
_log = logging.getLogger(__name__)

Rows: TypeAlias = Iterator[tuple[str, Mapping[str, Any]]]


def read_records(spec: DataSpec | Path | str, require: Iterable[Field] = ()) -> list[Record]:
    """Read every row of a data set.

    Args:
        spec: A file; the name of a preset, or ``NAME@PATH`` for a preset's own file; or a Hub id with a split, as in
            ``org/name#train``. Files and Hub ids may have a column mapping where columns have other names. A file that
            is there is the file, whatever else its name could mean.
        require: Fields that a row of prompt and response must have; rows of ``text`` or ``input_ids`` are complete.

    Raises:
        UserError: The data are missing, empty or malformed, a column is missing, a row lacks a required field, or they
            have a weight, which only :func:`~antidote_llm.data.read_mixed` can honour.
    """
    if not isinstance(spec, DataSpec):
        spec = DataSpec.parse(str(spec))
    if spec.weight is not None:
        raise UserError(f"{spec.path}: a weight is only for files that are mixed: leave weight={spec.weight:g} out")
    needed = tuple(require)
    if (named := _preset(spec)) is not None:
        records = _preset_records(*named, str(spec.path), needed)
    else:
        records = [Row(cells, origin, spec.columns).record(needed) for origin, cells in _rows(spec.path)]
    if not records:
        raise UserError(f"{spec.path} has no rows: fill it, or name other data")
    return records


def _preset(spec: DataSpec) -> tuple[Preset, str | None] | None:
    """Return the preset that is named and the path behind its name, if any; None where none is named."""
    name, at, path = str(spec.path).partition("@")
    if spec.path.is_file() or (name not in PRESETS and not at):
        return None
    if name not in PRESETS:
        if "/" in name or Path(name).suffix:
            return None
        raise UserError(f"{spec.path}: no such file, and {_no_preset(name)}")
    if spec.columns:
        mapped = ",".join(f"{field}={column}" for field, column in spec.columns.items())
        raise UserError(f"{spec.path}: a preset knows its own columns: leave {mapped} out, or name the file alone")
    return PRESETS[name], path if at else None


def _no_preset(name: str) -> str:
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"no preset '{name}': {hint}there are {', '.join(PRESETS)}"


def _rows(path: Path) -> Rows:
    given = str(path)
    if path.is_file() or path.suffix.lower() in SUFFIXES or path.is_absolute():
        return file_rows(path)
    if (match := _HUB_ID.fullmatch(given)) is not None:
        return hub_rows(match["id"], match["config"], match["split"], given, "name a file")
    if path.suffix or path.exists() or "/" in given:
        return file_rows(path)
    raise UserError(f"{given}: no such file, and {_no_preset(given)}; or name a Hub id, as in org/name#train")


def _preset_records(preset: Preset, path: str | None, given: str, require: tuple[Field, ...]) -> list[Record]:
    if "response" in require and not preset.answers:
        raise UserError(f"{given}: its rows have no responses, which are needed here: name data that have them")
    records: list[Record] = []
    left_out: Counter[str] = Counter()
    for origin, cells in _preset_rows(preset, path, given):
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
    """Return a record whose empty response is none."""
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
    if not root.is_dir():
        raise UserError(f"{DATA_VARIABLE}={folder}: no such folder: name the one that holds the data, or unset it")
    return next((root / name for name in preset.files if (root / name).is_file()), None)


def _own_file(preset: Preset, path: Path, given: str) -> Path:
    """Return the file that a path behind a preset's name means; in a folder, the preset's own file."""
    if not path.is_dir():
        return path
    names = [name for file in preset.files for name in (file, Path(file).name)]
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"{given}: the folder holds none of {', '.join(names)}: name the file itself")
    return found
