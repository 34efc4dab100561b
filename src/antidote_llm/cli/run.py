"""``antidote run``: a recipe's stages, one command after the other."""

from __future__ import annotations

import difflib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from antidote_llm.bench.commands import ALIGNED, ATTACKED, REPAIRED, Places, Step, step_commands
from antidote_llm.bench.drawing import DrawnData
from antidote_llm.bench.reading import read_recipe
from antidote_llm.bench.recipe import STAGES, Recipe
from antidote_llm.bench.results import comparison_of, evaluations_there, models_there, require_before, results_of
from antidote_llm.choices import StageName
from antidote_llm.cli.application import application
from antidote_llm.cli.model_options import require_openable
from antidote_llm.cli.plan_options import FlopsOption, PlanFlag, require_speed, required
from antidote_llm.cli.run_plan import planned_trainings, tell_plan
from antidote_llm.cli.suite_options import judge_from, prompts_from
from antidote_llm.cli.tables import outcome_tables
from antidote_llm.cli.task_options import tasks_from
from antidote_llm.cli.terminal import JsonFlag, Terminal
from antidote_llm.data.mixing import require_disjoint
from antidote_llm.errors import UserError
from antidote_llm.evaluation.endpoint_keys import KEY_VARIABLE, URL_VARIABLE, only_tied_keys, require_no_secret
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.io.files import write_json
from antidote_llm.training.estimate import given_speed

_ALL_MODELS = (ALIGNED, ATTACKED, REPAIRED)
# In the commands of a plan, where no folder was named.
_UNNAMED = "DIR"


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe: a .yaml file, or a shipped one such as paper/llama2-7b.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the results go.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Folder or Hub id to use in place of its model.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, as in finetune.defense=lisa. Repeatable."),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGES", help=f"Some of {','.join(STAGES)}; all by default.")
    ] = None,
    plan: PlanFlag = False,
    flops: FlopsOption = None,
    as_json: JsonFlag = False,
) -> int:
    """Run a recipe: align, fine-tune, repair and evaluate as one file says; what is finished already is left.

    Example: antidote run paper/llama2-7b --out runs/llama2
    """
    terminal = Terminal(as_json)
    require_speed(flops, plan)
    read = read_recipe(recipe, [*(settings or []), *([f"model={model}"] if model else [])])
    for judge in read.evaluate.judge:
        # Plans and results hold the commands, whichever stages are run.
        require_no_secret(judge.partition("#")[0] if judge.startswith("endpoint=") else "")
    stages = _stages(only)
    place = Path(_UNNAMED) if plan and out is None else required(out)
    require_openable(place)
    steps = step_commands(read, place, stages, _ALL_MODELS if plan else models_there(place))
    if not plan:
        require_before(steps, place)
    _require_understood(steps)
    drawn = DrawnData.of(read)
    if plan:
        tell_plan(terminal, read, steps, drawn, flops)
        return 0
    with only_tied_keys(os.environ) as withheld:
        if "evaluate" in stages:
            _require_askable(read, drawn)
            if withheld:
                _tell_of_key(terminal, read)
        # What is wrong with a later stage's rows is found before the first one's training.
        planned_trainings(read, steps, drawn, given_speed(1.0))
        return _perform(terminal, read, steps, drawn, place)


def _perform(terminal: Terminal, recipe: Recipe, steps: Sequence[Step], drawn: DrawnData, out: Path) -> int:
    """Run the commands in order, and gather what they found; the first that fails ends it, with its exit code."""
    drawn.write(Places(out).data)
    for number, step in enumerate(steps, 1):
        terminal.say(f"[{number}/{len(steps)}] {shlex.join(['antidote', *step.arguments])}")
        if code := launch([*step.arguments, "--json"]):
            return code
    write_json(out / "results.json", results_of(recipe, steps, out))
    _tell(terminal, recipe, steps, out)
    return 0


def launch(arguments: Sequence[str]) -> int:
    """Run a command in a process of its own, so that it gives back all memory; what it says on the way is shown."""
    command = [sys.executable, "-m", "antidote_llm", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def _stages(only: str | None) -> list[StageName]:
    asked = list(STAGES) if only is None else [part.strip() for part in only.split(",") if part.strip()]
    for name in asked:
        if name not in STAGES:
            near = difflib.get_close_matches(name, STAGES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"--only {name}: no such stage{hint}: use some of {', '.join(STAGES)}")
    if not asked:
        raise UserError(f"--only names no stage: use some of {', '.join(STAGES)}")
    return [name for name in STAGES if name in asked]


def _require_understood(steps: Sequence[Step]) -> None:
    """Refuse options that a command does not take, before the first of them runs."""
    known = typer.main.get_command(application())
    for step in steps:
        name, *arguments = step.arguments
        with redirect_stdout(io.StringIO()):
            known.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def _require_askable(recipe: Recipe, drawn: DrawnData) -> None:
    """Refuse requests, tasks and judges that there are none of, and prompts that the repair learns from."""
    harmless = prompts_from(recipe.evaluate.harmless)
    tasks, _ = tasks_from(list(recipe.evaluate.tasks), recipe.evaluate.task_rows)
    require_disjoint(drawn.realign, [*harmless, *chain.from_iterable(tasks.values())])
    judge_from(list(recipe.evaluate.judge))


def _tell_of_key(terminal: Terminal, recipe: Recipe) -> None:
    """Say that a key which names no server is not sent to the one that a recipe names."""
    for judge in recipe.evaluate.judge:
        if judge.startswith("endpoint="):
            terminal.warn(
                f"{KEY_VARIABLE} is not sent to {judge.removeprefix('endpoint=')}, which the recipe names: "
                f"set {URL_VARIABLE} to the server that the key is for"
            )


def _tell(terminal: Terminal, recipe: Recipe, steps: Sequence[Step], out: Path) -> None:
    evaluations = evaluations_there(out)
    comparison = comparison_of(evaluations)
    metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
    kept: dict[str, Estimate | None] = {}
    if comparison is not None and len(comparison.gain_kept) == 1:
        (gain,) = comparison.gain_kept.values()
        kept = {ATTACKED: None, REPAIRED: gain.estimate}
    verdict = [] if comparison is None else [comparison.verdict.sentence]
    shown: list[RenderableType] = [*outcome_tables(metrics, kept), *verdict, f"results: {out}/results.json"]
    terminal.result(results_of(recipe, steps, out), *shown)
