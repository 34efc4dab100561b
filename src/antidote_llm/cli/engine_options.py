"""Options that say how much memory and disk a repair may take, and by which engine it goes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.filesize import decimal

from antidote_llm.calibration.collect import Estimate
from antidote_llm.choices import EngineName
from antidote_llm.errors import UserError
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.memory_budget import MemoryBudget

EngineOption = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="memory holds the whole model; streaming holds one decoder layer at a time, for models larger than "
        "memory; auto takes memory where the model fits.",
    ),
]
MaxRamOption = Annotated[
    str | None,
    typer.Option("--max-ram", metavar="SIZE", help="Memory that may be used, as in 16GB; by default what is free."),
]
MaxVramOption = Annotated[
    str | None, typer.Option("--max-vram", metavar="SIZE", help="GPU memory that may be used; by default what is free.")
]
MaxDiskOption = Annotated[
    str | None, typer.Option("--max-disk", metavar="SIZE", help="Disk that the result may take while it is written.")
]
PatchOnlyFlag = Annotated[
    bool,
    typer.Option("--patch-only", help="Write the patch and the record, and no model: antidote patch apply makes one."),
]
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kKMGT]?)(?P<binary>i?)[bB]?")
_MOST_BYTES = 2.0**63
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Engine:
    """How a model is opened and what may be used for it.

    Attributes:
        name: Which engine.
        room: How much memory.
        max_disk_bytes: What the result may take on the disk.
    """

    name: EngineName = "auto"
    room: MemoryBudget = field(default_factory=MemoryBudget)
    max_disk_bytes: int | None = None

    @classmethod
    def of(cls, name: EngineName, max_ram: str | None, max_vram: str | None, max_disk: str | None) -> Engine:
        """Read the options.

        Raises:
            UserError: A size is none.
        """
        room = MemoryBudget(_bytes("--max-ram", max_ram), _bytes("--max-vram", max_vram))
        return cls(name, room, _bytes("--max-disk", max_disk))

    @property
    def layers_on_disk(self) -> bool | None:
        """Whether the decoder layers stay on the disk; None where that depends on what fits."""
        return None if self.name == "auto" else self.name == "streaming"


def require_in_memory(opened: LoadedModel, what: str, mend: str) -> None:
    """Refuse what a model cannot do whose layers are on the disk.

    Raises:
        UserError: Says what.
    """
    if opened.stream is not None:
        raise UserError(
            f"{opened.base.reference} is read layer by layer (--engine streaming, or too little --max-ram), and cannot "
            f"generate {what} so: {mend}"
        )


def described(estimate: Estimate) -> str:
    """Say in one line what collecting statistics takes."""
    line = (
        f"statistics: {estimate.tokens:,} positions, engine {estimate.engine}, up to {decimal(estimate.ram_bytes)} of "
        "memory"
    )
    if estimate.engine == "streaming":
        times = "once" if estimate.sweeps == 1 else f"{estimate.sweeps} times"
        line += f", {decimal(estimate.read_bytes)} to read (every layer {times})"
    return line


def _bytes(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    unit = 0 if match is None else (1024 if match["binary"] else 1000) ** _POWERS[match["unit"].lower()]
    size = 0.0 if match is None else float(match["number"]) * unit
    if not 0 < size < _MOST_BYTES:
        raise UserError(f"{option} {text}: not a size: write a number and a unit, as in 16GB or 500MB")
    return int(size)
