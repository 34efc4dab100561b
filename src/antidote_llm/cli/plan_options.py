"""Plans instead of trainings: what ``--plan`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.filesize import decimal
from rich.table import Table

from antidote_llm.choices import DtypeName, TemplateName
from antidote_llm.cli.terminal import Terminal
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.models.skeleton import open_skeleton
from antidote_llm.training.defense import Defense, StageData
from antidote_llm.training.estimate import CHARACTERS_PER_TOKEN, StagePlan, given_speed, plan_stage, renderer_for
from antidote_llm.training.settings import TrainingSettings

PlanFlag = Annotated[
    bool,
    typer.Option("--plan", help="Print rows, steps, tokens, memory and time that it would take, and do nothing else."),
]
FlopsOption = Annotated[
    float | None,
    typer.Option(
        "--flops", help="Floating-point operations a second, for the time of a plan; measured here where not given."
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes.")]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A training that is only talked about.

    Attributes:
        model: Folder or Hub id.
        tokenizer: Where the tokenizer is, where not there.
        template: How prompts are put.
        system: System prompt.
        dtype: The type that weights would be loaded in.
        trust_remote_code: Whether to run Python code that comes with the checkpoint.
        defense: How it would be defended.
        settings: The defense's settings.
        training: How it would be trained.
        rows: What it would learn from.
        companion: What the defense would learn from beside it.
    """

    model: str
    tokenizer: str | None
    template: TemplateName
    system: str | None
    dtype: DtypeName
    trust_remote_code: bool
    defense: Defense
    settings: BaseModel
    training: TrainingSettings
    rows: Sequence[Record]
    companion: Sequence[Record]

    def tell(self, terminal: Terminal, flops: float | None) -> None:
        """Give the plan as the command's result."""
        skeleton = open_skeleton(self.model, self.tokenizer, trust_remote_code=self.trust_remote_code)
        renderer = renderer_for(skeleton, self.template, self.system)
        if skeleton.tokenizer is not None and any(row.prompt is not None for row in (*self.rows, *self.companion)):
            terminal.say(renderer.described)
        data = StageData(renderer, self.rows, self.companion)
        speed = None if flops is None else given_speed(flops)
        plan = plan_stage(skeleton, data, self.defense, self.training, self.settings, dtype=self.dtype, speed=speed)
        terminal.result(plan.model_dump(mode="json"), plan_table([plan]), *plan_notes([plan]))


def required(out: Path | None) -> Path:
    """Return the folder that a result goes to.

    Raises:
        UserError: None is named.
    """
    if out is None:
        raise UserError("nowhere to write to: pass --out DIR, or --plan")
    return out


def require_speed(flops: float | None, plan: bool) -> None:
    """Refuse a speed that is none, or that nobody asks for.

    Raises:
        UserError: Names the option.
    """
    if flops is not None and not plan:
        raise UserError("--flops is for a plan: pass --plan, or leave it out")
    if flops is not None and not 0 < flops < float("inf"):
        raise UserError(f"--flops {flops:g}: give operations a second, as in 4e14")


def plan_table(plans: Sequence[StagePlan]) -> Table:
    """Return the trainings, one row each."""
    table = Table("stage", "defense", title="what would be trained", title_justify="left")
    headings = ("rows", "steps", "tokens an epoch", "tokens", "trained of all", "memory", "time")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(
            plan.stage,
            plan.defense,
            f"{plan.rows:,}" + (f" + {plan.companion_rows:,}" if plan.companion_rows else ""),
            f"{plan.steps:,}",
            f"{plan.tokens_per_epoch:,}",
            f"{plan.tokens:,}",
            f"{plan.trainable_parameters:,} of {plan.parameters:,}",
            decimal(plan.memory_bytes),
            duration(plan.seconds),
        )
    return table


def plan_notes(plans: Sequence[StagePlan]) -> list[str]:
    """Return what the numbers rest on, a line each."""
    notes = []
    for plan in plans:
        parts = [f"{name} {decimal(value)}" for name, value in plan.memory.model_dump().items() if value]
        notes.append(f"memory of {plan.stage}: {', '.join(parts)}")
        if plan.memory.activations is None:
            notes.append(f"memory of {plan.stage}: activations are not known for this architecture, and not counted")
        if plan.tokens_from == "characters":
            notes.append(
                f"tokens of {plan.stage}: estimated, {CHARACTERS_PER_TOKEN} characters a token: no tokenizer at hand"
            )
        speed = plan.speed
        said = "as given" if speed.source == "given" else f"measured on {speed.device} by products of matrices"
        notes.append(
            f"time of {plan.stage}: {plan.flops:.3g} operations at {speed.flops_per_second:.3g} a second ({said})"
        )
    return notes


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
