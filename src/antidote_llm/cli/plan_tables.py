"""Tables of a plan: what ``--plan`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table

from antidote_llm.training.estimate import CHARACTERS_PER_TOKEN, StagePlan
from antidote_llm.workflows.recipe_plan import PassPlan, RecipePlan


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


def pass_table(plans: Sequence[PassPlan]) -> Table:
    """Return the passes of a repair and of evaluations, one row each."""
    table = Table("stage", "model", title="what would be read and asked", title_justify="left")
    for heading in ("rows", "tokens", "new tokens at most", "memory", "time at least"):
        table.add_column(heading, justify="right", no_wrap=True)
    for plan in plans:
        new = f"{plan.new_tokens:,}" if plan.new_tokens else "-"
        sizes = (f"{plan.rows:,}", f"{plan.tokens:,}", new, decimal(plan.memory_bytes))
        table.add_row(plan.stage, plan.name, *sizes, duration(plan.seconds))
    return table


def recipe_plan_tables(plan: RecipePlan) -> list[RenderableType]:
    """Return the commands of a recipe, and what they would take."""
    whole = f"in all: {duration(plan.seconds)} at that speed, judges left out"
    tables: list[RenderableType] = []
    if plan.trainings:
        tables.append(plan_table(plan.trainings))
    if plan.passes:
        tables.append(pass_table(plan.passes))
    return [*plan.commands, *tables, *plan_notes(plan.trainings), whole]
