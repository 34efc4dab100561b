"""``antidote run``: a recipe's stages, one after the other."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from antidote_llm.choices import GROUPS, StageName
from antidote_llm.cli.options import JsonFlag
from antidote_llm.cli.terminal import Terminal, say_loading
from antidote_llm.cli.train import FLOPS_OPTION, require_speed
from antidote_llm.errors import UserError, setting
from antidote_llm.workflows.recipe_file import read_recipe
from antidote_llm.workflows.result import required_out

if TYPE_CHECKING:
    from antidote_llm.workflows.recipe_steps import Step

_STAGES: tuple[StageName, ...] = get_args(StageName)
_MAIN = GROUPS["main"]


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe: a .yaml file, or a shipped one such as paper/llama2-7b.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the results go.", rich_help_panel=_MAIN)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder or Hub id to use in place of its model.", rich_help_panel=_MAIN),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value, as in finetune.defense=lisa. Repeatable.",
            rich_help_panel=_MAIN,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="STAGES",
            help=f"Some of {','.join(_STAGES)}; all by default.",
            rich_help_panel=_MAIN,
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print rows, steps, tokens, memory and time that it would take, and do nothing else.",
            rich_help_panel=_MAIN,
        ),
    ] = False,
    flops: Annotated[float | None, FLOPS_OPTION] = None,
    as_json: JsonFlag = False,
) -> int:
    """Run a recipe: align, fine-tune, repair and evaluate as one file says; what is finished already is left.

    Example: antidote run paper/llama2-7b --out runs/llama2
    """
    terminal = Terminal(as_json)
    require_speed(flops, plan)
    read = read_recipe(recipe, [*(settings or []), *([f"model={model}"] if model else [])])
    stages = _stages(only)
    if not plan:
        required_out(out, "plan")
    say_loading(terminal)
    from antidote_llm.cli.plan_tables import recipe_plan_tables
    from antidote_llm.cli.result_tables import recipe_tables
    from antidote_llm.workflows.recipe import plan_of_recipe, run_recipe

    if plan:
        found = plan_of_recipe(read, stages, terminal, out, flops)
        terminal.result(found.model_dump(mode="json"), *recipe_plan_tables(found))
        return 0
    result = run_recipe(read, stages, required_out(out, "plan"), terminal, launch)
    if isinstance(result, int):
        return result
    terminal.result(result.value, *recipe_tables(result))
    return 0


def launch(step: Step) -> int:
    """Carry out one step in a process of its own, so that it gives back all memory, and return its exit code."""
    command = [sys.executable, "-m", "antidote_llm.cli.step"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            process.communicate(step_json(step))
            return process.returncode
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def step_json(step: Step) -> str:
    """Return a step as its process reads it."""
    return json.dumps({"command": step.spec.command, "spec": step.spec.model_dump(mode="json")})


def _stages(only: str | None) -> list[StageName]:
    asked = list(_STAGES) if only is None else [part.strip() for part in only.split(",") if part.strip()]
    for name in asked:
        if name not in _STAGES:
            near = difflib.get_close_matches(name, _STAGES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{setting('only')} {name}: no such stage{hint}: use some of {', '.join(_STAGES)}")
    if not asked:
        raise UserError(f"{setting('only')} names no stage: use some of {', '.join(_STAGES)}")
    return [name for name in _STAGES if name in asked]
