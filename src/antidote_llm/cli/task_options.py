"""Options that name the user's tasks."""

from __future__ import annotations

from typing import Annotated

import typer

from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.evaluation.endpoint import Endpoint
from antidote_llm.evaluation.tasks.scoring import Scoring
from antidote_llm.evaluation.tasks.task import Task, load_task, near_miss
from antidote_llm.io.strict_json import is_utf8

TaskRowsOption = Annotated[
    int | None,
    typer.Option(
        "--task-rows", min=1, help="First rows of each task; as in the paper, or all of a task with data of its own."
    ),
]
TaskTokensOption = Annotated[
    int | None,
    typer.Option("--task-max-new-tokens", min=1, help="Length of a task's answer at most; each task has its own."),
]
TaskEndpointOption = Annotated[
    str | None,
    typer.Option(
        "--task-endpoint", metavar="URL#MODEL", help="OpenAI-compatible model that compares answers, for alpacaeval."
    ),
]
TaskSeedOption = Annotated[
    int, typer.Option("--task-seed", help="Decides which of two answers is shown first to the model that compares.")
]

Tasks = tuple[dict[str, list[Record]], dict[str, Scoring]]


def tasks_from(
    options: list[str] | None, rows: int | None = None, endpoint: Endpoint | None = None, seed: int = 0
) -> Tasks:
    """Read the data of every task option, and find what scores the tasks that are known by name.

    An option is ``NAME``, ``NAME@FILE`` or ``NAME=DATA``: a known task on its own data, on its own data in a file, or
    any task on any data.

    Raises:
        UserError: A name is unknown and has no data, or comes twice, or there are fewer rows than asked for.
    """
    tasks: dict[str, list[Record]] = {}
    scoring: dict[str, Scoring] = {}
    for option in options or []:
        name, data, task, own_data = _named(option)
        if name in tasks:
            raise UserError(f"--task {name} is given twice: give each task another name")
        if task is not None:
            scoring[name] = task.scoring(endpoint, seed)
        # Rows of its own data are counted before any is left out: the first ones are for training.
        records = read_records(DataSpec.parse(data), require=("prompt",) if own_data else ("prompt", "response"))
        paper = task if own_data else None
        tasks[name] = _first(records, paper, rows, option)
    return tasks, scoring


def _named(option: str) -> tuple[str, str, Task | None, bool]:
    """Return a task's name, its data, the task where it is known, and whether the data are its own."""
    before, equals, data = option.partition("=")
    name, at, file = option.partition("@")
    if (file and "=" not in name) or not (at or equals):
        task = load_task(name)
        if task is not None:
            return name, task.preset + at + file, task, True
    if not equals:
        raise UserError(
            f"--task {option}: {near_miss(option)}; or name the task and its data, as in --task sst2=sst2.jsonl"
        )
    if not is_utf8(before):
        raise UserError(f"--task {option}: the task's name is not UTF-8: give it another")
    if not before or not data or "/" in before:
        raise UserError(f"--task {option}: name the task and its data, as in --task sst2=sst2.jsonl")
    return before, data, load_task(before), False


def _first(records: list[Record], paper: Task | None, rows: int | None, option: str) -> list[Record]:
    """Return as many rows as are asked for, of a task's own data those that the paper asks where none are."""
    left = records[paper.skip :] if paper else records
    if not left:
        raise UserError(f"--task {option}: its first {len(records)} rows are for training, and there are no others")
    if rows is not None and rows > len(left):
        raise UserError(f"--task-rows {rows}: {option} has {len(left)} rows: pass {len(left)} or fewer")
    return left[: rows or (paper.rows if paper else None)]
