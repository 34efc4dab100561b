"""What a spec asks models: prompts, tasks, judges and settings; and the evaluations of a repair."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from antidote_llm.data.conversations import require_text
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.mixing import hold_out, require_disjoint
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.backends import Backend
from antidote_llm.evaluation.endpoint import Endpoint
from antidote_llm.evaluation.endpoint_keys import require_one_owner
from antidote_llm.evaluation.evaluate import evaluate, prepare_questions
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import Judge, identity_of
from antidote_llm.evaluation.panel import answer_judges, load_panel
from antidote_llm.evaluation.prompts import opening_ids, stop_ids
from antidote_llm.evaluation.scoring import Scoring
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite, questions_sha256
from antidote_llm.evaluation.tasks.task import Task, load_task, near_miss
from antidote_llm.io.resources import Stopwatch
from antidote_llm.io.strict_json import is_utf8
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.target import Target
from antidote_llm.report.compose import AFTER, ALIGNED, BEFORE
from antidote_llm.workflows.reporter import Reporter
from antidote_llm.workflows.specs import EvaluateSpec, RepairSpec

_HELD_OUT_FRACTION, _HELD_OUT_MOST, _HELD_OUT_SEED = 0.2, 200, 0
# The settings of an evaluation by the fields of a spec, where they have other names.
_FIELDS = {"match": "task_match"}

Tasks = tuple[dict[str, list[Record]], dict[str, Scoring]]


def judge_from(names: Sequence[str], *others: str | None) -> Judge:
    """Load the judge, or the panel of judges.

    Args:
        names: The judges.
        others: Other endpoints of the same workflow, as ``URL#NAME``.

    Raises:
        UserError: As :func:`~antidote_llm.evaluation.panel.load_panel`, or one key would go to several servers.
    """
    endpoints = [name.partition("=")[2] for name in names if name.startswith("endpoint=")]
    require_one_owner([text.partition("#")[0] for text in (*endpoints, *others) if text], os.environ)
    return load_panel(list(names))


def prompts_from(data: str | None) -> list[Record]:
    """Read prompts, with or without responses; nothing where no data is named."""
    return read_records(DataSpec.parse(data), require=("prompt",)) if data else []


def settings_from(spec: RepairSpec | EvaluateSpec, **more: Any) -> EvaluationSettings:
    """Build the settings of an evaluation.

    Raises:
        UserError: A value is not one of those allowed.
    """
    given = {
        "template": spec.template,
        "max_new_tokens": spec.max_new_tokens,
        "match": spec.task_match,
        "system": spec.system,
        "thinking": spec.thinking,
        **more,
    }
    for name in ("system", "prefill"):
        if (text := given.get(name)) is not None:
            require_text(text, setting(name))
    try:
        return EvaluationSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        said = first["msg"].lower().removeprefix("value error, ")
        raise UserError(f"{setting(_FIELDS.get(field, field))} {first['input']}: {said}") from error


def tasks_from(names: Sequence[str], rows: int | None = None, endpoint: Endpoint | None = None, seed: int = 0) -> Tasks:
    """Read the data of every task, and find what scores the tasks that are known by name.

    A task is ``NAME``, ``NAME@FILE`` or ``NAME=DATA``: a known task on its own data, on its own data in a file, or any
    task on any data.

    Raises:
        UserError: A name is unknown and has no data, or comes twice, or there are fewer rows than asked for.
    """
    tasks: dict[str, list[Record]] = {}
    scoring: dict[str, Scoring] = {}
    for text in names:
        name, data, task, own_data = _named_task(text)
        if name in tasks:
            raise UserError(f"{setting('tasks')} {name} is given twice: give each task another name")
        if task is not None:
            scoring[name] = task.scoring(endpoint, seed)
        # Rows of its own data are counted before any is left out: the first ones are for training.
        records = read_records(DataSpec.parse(data), require=("prompt",) if own_data else ("prompt", "response"))
        tasks[name] = _first(records, task if own_data else None, rows, text)
    return tasks, scoring


def _named_task(text: str) -> tuple[str, str, Task | None, bool]:
    """Return a task's name, its data, the task where it is known, and whether the data are its own."""
    before, equals, data = text.partition("=")
    name, at, file = text.partition("@")
    option = f"{setting('tasks')} {text}"
    example = f"as in {setting('tasks')} sst2=sst2.jsonl"
    if (file and "=" not in name) or not (at or equals):
        task = load_task(name)
        if task is not None:
            return name, task.preset + at + file, task, True
    if not equals:
        raise UserError(f"{option}: {near_miss(text)}; or name the task and its data, {example}")
    if not is_utf8(before):
        raise UserError(f"{option}: the task's name is not UTF-8: give it another")
    if not before or not data or "/" in before:
        raise UserError(f"{option}: name the task and its data, {example}")
    return before, data, load_task(before), False


def _first(records: list[Record], paper: Task | None, rows: int | None, text: str) -> list[Record]:
    """Return as many rows as are asked for, of a task's own data those that the paper asks where none are."""
    left = records[paper.skip :] if paper else records
    if not left:
        raise UserError(
            f"{setting('tasks')} {text}: its first {len(records)} rows are for training, and there are no others"
        )
    if rows is not None and rows > len(left):
        raise UserError(f"{setting('task_rows')} {rows}: {text} has {len(left)} rows: pass {len(left)} or fewer")
    return left[: rows or (paper.rows if paper else None)]


def identity_of_questions(
    opened: LoadedModel, suite: Suite, judge: Judge, settings: EvaluationSettings
) -> dict[str, Any]:
    """Return what an evaluation of a model depends on besides the model, as JSON values.

    Where there is an opening, its tokens stand there as they follow the first prompt.

    Raises:
        UserError: The model cannot be asked one of the questions.
    """
    asked = prepare_questions(opened.model, opened.tokenizer, suite, judge, settings)
    renderer = settings.renderer(opened.tokenizer)
    found = {
        "suite": questions_sha256(asked),
        "stop_ids": stop_ids(opened.model, renderer.tokenizer, renderer),
        "judge": identity_of(judge),
        "settings": settings.model_dump(mode="json"),
    }
    if settings.prefill is not None and suite.harmful:
        found["opening_ids"] = opening_ids(renderer, suite.harmful[:1], settings.prefill)[0]
    return found


def evaluated(
    reporter: Reporter,
    opened: LoadedModel,
    plan: EvaluationPlan,
    what: str,
    backend: Backend | None = None,
) -> Evaluation:
    """Evaluate a model and show how far it is, and each judge that takes its time."""
    suite = plan.suite
    heeded = Suite(tasks=suite.tasks) if not answer_judges(plan.judge) else suite
    with reporter.stages("answers") as moved:
        if total := sum(map(len, heeded.parts().values())):
            moved(what, 0, total)
        return evaluate(
            opened.model,
            opened.tokenizer,
            suite,
            plan.judge,
            plan.settings,
            progress=partial(moved, what),
            backend=backend,
            judging=lambda name: partial(moved, f"{what}: {name}"),
        )


@dataclass(frozen=True)
class EvaluationPlan:
    """Questions, who judges the answers, and how the questions are asked."""

    suite: Suite
    judge: Judge
    settings: EvaluationSettings

    def records(self) -> list[Record]:
        """Return all rows that are asked."""
        return [row for part in self.suite.parts().values() for row in part]

    def identity(self, opened: LoadedModel) -> dict[str, Any]:
        """Return what makes it this evaluation of a model, as JSON values.

        Raises:
            UserError: The model has no tokenizer, or cannot be asked one of the questions.
        """
        if opened.tokenizer is None:
            raise UserError(
                f"{opened.base.reference}: no tokenizer, which judges and tasks need to read answers: pass "
                f"{setting('tokenizer')}, or {setting('evaluate')} none without {setting('harmless')} and "
                f"{setting('tasks')}"
            )
        return identity_of_questions(opened, self.suite, self.judge, self.settings)

    def run(self, reporter: Reporter, opened: LoadedModel, what: str) -> Evaluation:
        """Ask one model everything."""
        return evaluated(reporter, opened, self, what)

    def before_and_after(
        self, reporter: Reporter, opened: LoadedModel, target: Target, repaired: Path, stopwatch: Stopwatch
    ) -> Mapping[str, Evaluation]:
        """Ask the model as it is, as it was repaired, and the aligned model where one is known.

        ``opened`` must not be used afterwards.
        """
        with stopwatch.step("evaluate"):
            found = {BEFORE: self.run(reporter, opened, "before")}
            if target.name == "adapter":
                opened = opened.with_adapter(repaired)
                found[AFTER] = self.run(reporter, opened, "after")
                found[ALIGNED] = self.run(reporter, opened.without_adapter(), "aligned")
            else:
                opened = opened.with_weights(open_model_checkpoint(str(repaired)))
                found[AFTER] = self.run(reporter, opened, "after")
                if target.aligned is not None:
                    opened = opened.with_weights(target.aligned)
                    found[ALIGNED] = self.run(reporter, opened, "aligned")
        return {name: found[name] for name in (ALIGNED, BEFORE, AFTER) if name in found}


def plan_of_repair(
    spec: RepairSpec, calibration: Sequence[Record], settings: EvaluationSettings
) -> tuple[list[Record], EvaluationPlan | None]:
    """Return the harmful rows that are left for calibration, and what a repair is judged by.

    Args:
        spec: What is asked for.
        calibration: The harmful rows that the repair may learn from.
        settings: How to ask.

    Returns:
        The rows left for calibration, and the plan; None where nothing is to be asked.

    Raises:
        UserError: An evaluation prompt is among the calibration rows too.
    """
    judge = judge_from(spec.judge)
    kept, asked = list(calibration), prompts_from(None if spec.evaluate == "none" else spec.evaluate)
    if spec.evaluate is None and calibration:
        kept, asked = hold_out(calibration, _HELD_OUT_FRACTION, _HELD_OUT_MOST, _HELD_OUT_SEED)
    suite = Suite(asked, prompts_from(spec.harmless), *tasks_from(spec.tasks))
    require_disjoint(kept, [record for records in suite.parts().values() for record in records])
    if not (suite.harmful or suite.harmless or suite.tasks):
        return kept, None
    return kept, EvaluationPlan(suite, judge, settings)
