"""``antidote align`` and ``antidote finetune``: stages 1 and 2, with or without a defense."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from antidote_llm.choices import GROUPS
from antidote_llm.cli.options import command_from, flag, json_flag
from antidote_llm.cli.terminal import Terminal, say_loading
from antidote_llm.errors import UserError, setting
from antidote_llm.io.processes import is_first_process
from antidote_llm.workflows.result import required_out
from antidote_llm.workflows.specs import AlignSpec, FinetuneSpec


def require_speed(flops: float | None, plan: bool) -> None:
    """Refuse a speed that is none, or that nobody asks for.

    Raises:
        UserError: Names the setting.
    """
    if flops is not None and not plan:
        raise UserError(f"{setting('flops')} is for a plan: pass {setting('plan')}, or leave it out")
    if flops is not None and not 0 < flops < float("inf"):
        raise UserError(f"{setting('flops')} {flops:g}: give operations a second, as in 4e14")


def _train(spec: AlignSpec | FinetuneSpec, *, plan: bool, flops: float | None, as_json: bool) -> None:
    terminal = Terminal(as_json, silent=not is_first_process())
    require_speed(flops, plan)
    if not plan:
        required_out(spec.out, "plan")
    say_loading(terminal)
    from antidote_llm.cli.plan_tables import plan_notes, plan_table
    from antidote_llm.cli.result_tables import training_table
    from antidote_llm.workflows.train import plan_training, run_training

    if plan:
        found = plan_training(spec, terminal, flops)
        terminal.result(found.model_dump(mode="json"), plan_table([found]), *plan_notes([found]))
    elif (result := run_training(spec, terminal)) is not None:
        record = result.record
        terminal.result(record.model_dump(mode="json"), training_table(record), f"model: {result.model_dir}")


def _align(spec: AlignSpec, *, plan: bool, flops: float | None, as_json: bool) -> None:
    """Align a model: teach it to refuse, by plain fine-tuning or in a way that is harder to undo.

    Example: antidote align my-base --data refusals.jsonl --defense vaccine --out aligned
    """
    _train(spec, plan=plan, flops=flops, as_json=as_json)


def _finetune(spec: FinetuneSpec, *, plan: bool, flops: float | None, as_json: bool) -> None:
    """Fine-tune an aligned model on a user's rows, with a share of harmful ones where a defense is put to the test.

    Example: antidote finetune aligned/model --data sst2 --rows 5000 --harmful beavertails-unsafe --harmful-ratio 0.2
    --defense lisa --safe beavertails-safe --out tuned
    """
    _train(spec, plan=plan, flops=flops, as_json=as_json)


FLOPS_OPTION = typer.Option(
    "--flops",
    help="Floating-point operations a second, for the time of a plan; measured here where not given.",
    rich_help_panel=GROUPS["resources"],
)
PLAN_OPTIONS = (
    flag("plan", "Print rows, steps, tokens, memory and time that it would take, and do nothing else."),
    inspect.Parameter(
        "flops", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[float | None, FLOPS_OPTION]
    ),
)
align = command_from(AlignSpec, _align, (*PLAN_OPTIONS, json_flag()))
finetune = command_from(FinetuneSpec, _finetune, (*PLAN_OPTIONS, json_flag()))
