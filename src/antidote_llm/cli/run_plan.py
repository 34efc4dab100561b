"""``antidote run --plan``: what a recipe would run, and what that would take."""

from __future__ import annotations

import io
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table

from antidote_llm.bench.asking import AskingPlan, plan_asking
from antidote_llm.bench.commands import Places, Step, step_commands
from antidote_llm.bench.drawing import DrawnData
from antidote_llm.bench.recipe import Recipe
from antidote_llm.choices import StageName
from antidote_llm.cli.application import application
from antidote_llm.cli.plan_options import duration, plan_notes, plan_table
from antidote_llm.cli.suite_options import prompts_from
from antidote_llm.cli.task_options import tasks_from
from antidote_llm.cli.terminal import Terminal
from antidote_llm.models.skeleton import Skeleton, open_skeleton
from antidote_llm.training.estimate import Speed, StagePlan, commonest_matrix, given_speed, measured_speed

_MEASURED_TOKENS = 1024


def tell_plan(terminal: Terminal, recipe: Recipe, steps: Sequence[Step], drawn: DrawnData, flops: float | None) -> None:
    """Give the plan of a recipe as the command's result.

    Args:
        terminal: Where to.
        recipe: What would be done.
        steps: Its commands.
        drawn: The rows that would be drawn for it.
        flops: Floating-point operations a second; measured where not given.
    """
    skeleton = open_skeleton(recipe.model)
    speed = given_speed(flops) if flops else _speed(skeleton, recipe)
    trained = [plan.model_copy(update={"speed": speed}) for plan in planned_trainings(recipe, steps, drawn, speed)]
    harmless = prompts_from(recipe.evaluate.harmless)
    tasks, _ = tasks_from(list(recipe.evaluate.tasks), recipe.evaluate.task_rows)
    asked = plan_asking(recipe, drawn, harmless, tasks, steps, skeleton, speed)
    seconds = sum(plan.seconds for plan in trained) + sum(plan.seconds for plan in asked)
    commands = [shlex.join(["antidote", *step.arguments]) for step in steps]
    value = {
        "recipe": recipe.name,
        "source": recipe.source,
        "model": recipe.model,
        "commands": commands,
        "trainings": [plan.model_dump(mode="json") for plan in trained],
        "passes": [plan.model_dump(mode="json") for plan in asked],
        "memory_bytes": max((plan.memory_bytes for plan in trained), default=None),
        "seconds": seconds,
    }
    tables = [*([plan_table(trained)] if trained else []), *([_asking_table(asked)] if asked else [])]
    whole = f"in all: {duration(seconds)} at that speed, judges left out"
    terminal.result(value, *commands, *tables, *plan_notes(trained), whole)


def _speed(skeleton: Skeleton, recipe: Recipe) -> Speed:
    return measured_speed(_MEASURED_TOKENS, commonest_matrix(skeleton.model()), recipe.finetune.training)


def planned_trainings(recipe: Recipe, steps: Sequence[Step], drawn: DrawnData, speed: Speed) -> list[StagePlan]:
    """Let the commands that train plan for themselves, on the rows that would be drawn.

    Args:
        recipe: What would be done.
        steps: Its commands; those that train nothing are passed over.
        drawn: The rows of the repair and of the test.
        speed: How fast this machine is.

    Raises:
        UserError: As the trainings would, over their data or the model's layers.
    """
    plans = []
    with tempfile.TemporaryDirectory(prefix="antidote-plan-") as folder:
        drawn.write(Places(Path(folder)).data)
        for step in step_commands(recipe, Path(folder), _trained(steps), ()):
            command, _, *options = step.arguments
            further = ["--plan", "--json", "--flops", repr(speed.flops_per_second)]
            said = io.StringIO()
            with redirect_stdout(said):
                application()([command, recipe.model, *options, *further], standalone_mode=False)
            plans.append(StagePlan.model_validate_json(said.getvalue()))
    return plans


def _trained(steps: Sequence[Step]) -> list[StageName]:
    return [step.stage for step in steps if step.stage in ("align", "finetune")]


def _asking_table(plans: Sequence[AskingPlan]) -> Table:
    table = Table("stage", "model", title="what would be read and asked", title_justify="left")
    for heading in ("rows", "tokens", "new tokens at most", "memory", "time at least"):
        table.add_column(heading, justify="right", no_wrap=True)
    for plan in plans:
        new = f"{plan.new_tokens:,}" if plan.new_tokens else "-"
        sizes = (f"{plan.rows:,}", f"{plan.tokens:,}", new, decimal(plan.memory_bytes))
        table.add_row(plan.stage, plan.name, *sizes, duration(plan.seconds))
    return table
