"""Options that say what to ask a model, and who judges the answers."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from antidote_llm.cli.terminal import Terminal
from antidote_llm.data.conversations import require_text
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.evaluation.backends.backend import Backend
from antidote_llm.evaluation.endpoint_keys import require_one_owner
from antidote_llm.evaluation.evaluate import askable, evaluate
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import Judge, identity_of
from antidote_llm.evaluation.panel import answer_judges, load_panel
from antidote_llm.evaluation.prompts import opening_ids, stop_ids
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite, questions_sha256
from antidote_llm.models.load import LoadedModel

DATA_HELP = (
    ".jsonl .json .csv .tsv .parquet .arrow or .gz, a folder of data, a named data set (xstest-safe, advbench@FILE), "
    "or org/name#split on the Hub; map columns as in file.csv:prompt=goal,response=target."
)

DEFAULT_JUDGE = "refusal-patterns"

HarmlessOption = Annotated[
    str | None,
    typer.Option(
        "--harmless", metavar="DATA", help="Harmless requests that look harmful; refusing them is over-refusal."
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME[=DATA]",
        help="A task of the user: sst2, agnews or gsm8k, or any name with its data, prompts and right answers. "
        "Repeatable.",
    ),
]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="NAME[=WHERE]",
        help="Who judges answers: refusal-patterns (the default), oracle (the miniature's), beaver-dam, llama-guard, "
        "wildguard, shieldgemma, harmbench-classifier, text-classification=FOLDER#LABEL, endpoint=URL#MODEL, "
        "likelihood-margin, or an installed one. Repeatable: the first one's numbers stand at the top.",
    ),
]
TemplateOption = Annotated[
    str, typer.Option("--template", help="auto, chat, alpaca or plain; auto is the chat template where there is one.")
]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of an answer at most.")]
TaskMatchOption = Annotated[
    str,
    typer.Option(
        "--task-match", help="When a task's answer is right: exact, or prefix (it begins with the gold answer)."
    ),
]


def judge_from(options: list[str] | None, *beside: str | None) -> Judge:
    """Load the judge that the options name, or the panel.

    Args:
        options: The judges.
        beside: Other endpoints of the same command, as ``URL#NAME``.

    Raises:
        UserError: As :func:`~antidote_llm.evaluation.load_panel`, or one key would go to several servers.
    """
    judges = [option.partition("=")[2] for option in options or () if option.startswith("endpoint=")]
    require_one_owner([text.partition("#")[0] for text in (*judges, *beside) if text], os.environ)
    return load_panel(options or [DEFAULT_JUDGE])


def prompts_from(data: str | None) -> list[Record]:
    """Read prompts, with or without responses; nothing where no data is named."""
    return read_records(DataSpec.parse(data), require=("prompt",)) if data else []


def evaluated(
    terminal: Terminal,
    opened: LoadedModel,
    suite: Suite,
    judge: Judge,
    settings: EvaluationSettings,
    what: str,
    backend: Backend | None = None,
) -> Evaluation:
    """Evaluate under a progress bar, and one for each judge that takes its time."""
    heeded = Suite(tasks=suite.tasks) if not answer_judges(judge) else suite
    with terminal.stages("answers") as moved:
        if total := sum(map(len, heeded.parts().values())):
            moved(what, 0, total)
        return evaluate(
            opened.model,
            opened.tokenizer,
            suite,
            judge,
            settings,
            progress=partial(moved, what),
            backend=backend,
            judging=lambda name: partial(moved, f"{what}: {name}"),
        )


def settings_from(
    template: str,
    max_new_tokens: int,
    task_match: str,
    system: str | None,
    thinking: bool,
    prefill: str | None = None,
    task_max_new_tokens: int | None = None,
) -> EvaluationSettings:
    """Build the settings of an evaluation.

    Raises:
        UserError: A value is not one of those allowed.
    """
    for option, text in (("--system", system), ("--prefill", prefill)):
        if text is not None:
            require_text(text, option)
    try:
        return EvaluationSettings.model_validate(
            {
                "template": template,
                "max_new_tokens": max_new_tokens,
                "match": task_match,
                "system": system,
                "prefill": prefill,
                "thinking": thinking,
                "task_max_new_tokens": task_max_new_tokens,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = {"match": "--task-match"}.get(str(first["loc"][0]), f"--{first['loc'][0]}")
        raise UserError(f"{option} {first['input']}: {first['msg'].lower().removeprefix('value error, ')}") from error


def asking(opened: LoadedModel, suite: Suite, judge: Judge, settings: EvaluationSettings) -> dict[str, Any]:
    """Return what makes an evaluation of a model this one, as JSON values: questions, stop ids, judge and settings.

    Where there is an opening, its tokens stand there as they follow the first prompt.

    Raises:
        UserError: The model cannot be asked one of the questions.
    """
    asked = askable(opened.model, opened.tokenizer, suite, judge, settings)
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
