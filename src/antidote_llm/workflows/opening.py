"""Opens the model that a spec names, says which, and says how its prompts are put."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.filesize import decimal

from antidote_llm.calibration.collect import Estimate
from antidote_llm.choices import DtypeName, EngineName
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError, setting
from antidote_llm.io.strict_json import is_utf8
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.memory_budget import MemoryBudget
from antidote_llm.models.tokenizers import stored_template
from antidote_llm.workflows.reporter import Reporter

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kKMGT]?)(?P<binary>i?)[bB]?")
_MOST_BYTES = 2.0**63
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Engine:
    """How a model is opened and what may be used for it.

    Attributes:
        name: Which engine.
        memory: How much memory.
        max_disk_bytes: What the result may take on the disk.
    """

    name: EngineName = "auto"
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    max_disk_bytes: int | None = None

    @classmethod
    def of(cls, name: EngineName, max_ram: str | None, max_vram: str | None, max_disk: str | None) -> Engine:
        """Read the sizes.

        Raises:
            UserError: One of them is no size.
        """
        memory = MemoryBudget(_bytes("max_ram", max_ram), _bytes("max_vram", max_vram))
        return cls(name, memory, _bytes("max_disk", max_disk))

    @property
    def layers_on_disk(self) -> bool | None:
        """Whether the decoder layers stay on the disk; None where that depends on what fits."""
        return None if self.name == "auto" else self.name == "streaming"


def opened(
    reporter: Reporter,
    model: str,
    adapters: tuple[str, ...] = (),
    *,
    tokenizer: str | None = None,
    dtype: DtypeName = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    engine: Engine | None = None,
) -> LoadedModel:
    """Open a model with its adapters, the last of which is meant; in memory, where no engine is named."""
    reporter.say(f"opening {model}" + "".join(f" with adapter {name}" for name in adapters))
    found = load_model(
        model,
        adapters[-1] if adapters else None,
        lower_adapters=adapters[:-1],
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        layers_on_disk=False if engine is None else engine.layers_on_disk,
        budget=None if engine is None else engine.memory,
    )
    if left_out := found.left_out:
        more = " …" if len(left_out) > 1 else ""
        reporter.warn(
            f"{found.base.reference}: {type(found.causal_model).__name__} has no place for {tensors(len(left_out))} of "
            f"its files, which are left out ({left_out[0]}{more})"
        )
    return found


def require_openable(out: Path) -> None:
    """Refuse a place at which libraries could not open the models that are written there.

    Raises:
        UserError: Its name is not UTF-8.
    """
    if not is_utf8(os.path.realpath(out)):
        raise UserError(
            f"{out}: its name, or that of a folder above it, is not UTF-8, and no model can be opened there: "
            f"choose another {setting('out')}"
        )


def require_in_memory(opened: LoadedModel, what: str, fix: str) -> None:
    """Refuse what a model cannot do whose layers are on the disk.

    Raises:
        UserError: Says what.
    """
    if opened.stream is not None:
        raise UserError(
            f"{opened.base.reference} is read layer by layer ({setting('engine')} streaming, or too little "
            f"{setting('max_ram')}), and cannot generate {what} so: {fix}"
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


def tensors(number: int) -> str:
    """Return a number of tensors in words."""
    return f"{number:,} tensor{'s' if number != 1 else ''}"


def say_prompts(reporter: Reporter, opened: LoadedModel, renderer: Renderer, records: Iterable[Record]) -> str:
    """Say how prompts become what the model reads, and return what was said; nothing where there is no prompt."""
    if opened.tokenizer is None or all(record.prompt is None for record in records):
        return ""
    said = renderer.described + (_other_templates(opened) if renderer.chosen_by_tokenizer else "")
    reporter.say(said)
    return said


def _other_templates(opened: LoadedModel) -> str:
    """Name the tokenizer, where a folder that was opened and is not the tokenizer's has another chat template."""
    taken = opened.tokenizer.name_or_path if opened.tokenizer is not None else ""
    own = [each.reference for each in opened.checkpoints if str(each.folder) == taken]
    others = [
        each.reference
        for each in opened.checkpoints
        if str(each.folder) != taken and stored_template(each.folder) not in (None, _used_template(opened))
    ]
    if not others:
        return ""
    have = "has a chat template of its own" if len(others) == 1 else "have chat templates of their own"
    return f"; the tokenizer is that of {(own or [taken])[0]}, and {' and '.join(others)} {have}: --tokenizer takes it"


def _used_template(opened: LoadedModel) -> object:
    template = opened.tokenizer.chat_template if opened.tokenizer is not None else None
    return template.get("default") if isinstance(template, dict) else template


def _bytes(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    unit = 0 if match is None else (1024 if match["binary"] else 1000) ** _POWERS[match["unit"].lower()]
    size = 0.0 if match is None else float(match["number"]) * unit
    if not 0 < size < _MOST_BYTES:
        raise UserError(f"{setting(name)} {text}: not a size: write a number and a unit, as in 16GB or 500MB")
    return int(size)
