"""How a data file is named on the command line: its path, its columns, its weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from antidote_llm.errors import UserError

Field: TypeAlias = Literal["prompt", "response", "text", "input_ids", "messages", "system"]
FIELDS: tuple[Field, ...] = ("prompt", "response", "text", "input_ids", "messages", "system")
# What a row can be; where it could be several, the first counts.
KINDS: tuple[Field, ...] = ("input_ids", "messages", "prompt", "text")
_BEHIND_A_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet):")
_MAPPING = re.compile(r"^(?P<path>.+?):(?P<mapping>\w+=[^=,]+(,\w+=[^=,]+)*)$")


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A file and the columns that hold the fields, as in ``file.csv:prompt=goal,response=target,weight=2``.

    Attributes:
        path: The file.
        columns: Column by field, where they differ.
        weight: How much of a mix comes from this file; None where that was not said.
    """

    path: Path
    columns: Mapping[str, str]
    weight: float | None = None

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Parse a data argument of the command line.

        Raises:
            UserError: A field is unknown or named twice, or the weight is no positive number.
        """
        if not text.strip():
            raise UserError("data without a name: name a file, a preset or a Hub id")
        match = _MAPPING.match(text)
        if match is None:
            if _BEHIND_A_FILE.search(text) and not Path(text).expanduser().exists():
                raise UserError(f"{text}: no mapping of columns: write it as in file.csv:prompt=goal,response=target")
            return cls(Path(text).expanduser(), {})
        columns: dict[str, str] = {}
        for pair in match["mapping"].split(","):
            name, column = pair.split("=", 1)
            if name not in FIELDS and name != "weight":
                raise UserError(f"{text}: unknown field '{name}': map one of {', '.join(FIELDS)}, or give a weight")
            if name in columns:
                raise UserError(f"{text}: field '{name}' is mapped twice: map it once")
            columns[name] = column
        weight = _weight(columns.pop("weight"), text) if "weight" in columns else None
        _require_one_kind(columns, text)
        return cls(Path(match["path"]).expanduser(), columns, weight)


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"{where}: weight '{text}' is no number above 0: give one, as in file.csv:weight=2")
    return weight


def _require_one_kind(columns: Mapping[str, str], where: str) -> None:
    kinds = [name for name in KINDS if name in columns]
    if len(kinds) > 1:
        raise UserError(f"{where}: map one of prompt, text, input_ids and messages: a row is only one of them")
    if "system" in columns and kinds in (["text"], ["input_ids"]):
        raise UserError(f"{where}: a row of {kinds[0]} takes no system prompt: leave system={columns['system']} out")
