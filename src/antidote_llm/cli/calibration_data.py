"""Options that say which rows a repair learns from, and how they are rendered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from antidote_llm.cli.engine_options import require_in_memory
from antidote_llm.cli.terminal import Terminal, by_steps
from antidote_llm.data.columns import answer_columns
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.files import write_jsonl
from antidote_llm.data.mixing import read_mixed
from antidote_llm.data.records import Record
from antidote_llm.evaluation.judges.refusal_patterns import refuses
from antidote_llm.evaluation.own_answers import OWN_ANSWER, needs_own_answer, with_own_answers
from antidote_llm.evaluation.settings import DEFAULT_NEW_TOKENS, EvaluationSettings
from antidote_llm.models.load import LoadedModel
from antidote_llm.repairs.plan import HarmfulData

OWN_ANSWERS_FILE = "own_answers.jsonl"

HarmfulOption = Annotated[
    list[str] | None,
    typer.Option(
        "--harmful",
        metavar="DATA",
        help="Harmful requests with or without answers (the model then gives its own): .jsonl .json .csv .tsv "
        ".parquet .arrow or .gz, a folder of data, a named data set (advbench, advbench@FILE), or org/name#split on "
        "the Hub; map columns as in file.csv:prompt=goal,response=target,weight=2. Repeatable.",
    ),
]
HarmfulRowsOption = Annotated[
    int | None,
    typer.Option(
        "--harmful-rows", min=1, help="How many harmful rows in all, each file by its weight; all where not given."
    ),
]
CalibrationOption = Annotated[
    Literal["all", "auto"],
    typer.Option(
        "--calibration",
        help="all uses every harmful row; auto draws rows until the masks have settled, and says how sure that is.",
    ),
]
DataSeedOption = Annotated[int, typer.Option("--data-seed", min=0, help="Decides which rows are drawn.")]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="System prompt of every prompt that has none of its own.")
]
ThinkingOption = Annotated[
    bool,
    typer.Option(
        "--thinking/--no-thinking", help="Whether a reasoning model thinks before it replies, or replies at once."
    ),
]


def read_calibration(specs: Sequence[str] | None, limit: int | None, seed: int) -> list[Record]:
    """Read and mix the harmful rows; nothing where no data is named.

    Raises:
        UserError: A file cannot be read, or has too few rows for its share.
    """
    return read_mixed([DataSpec.parse(spec) for spec in specs], limit, seed, ("prompt",)) if specs else []


def harmful_data(
    terminal: Terminal,
    opened: LoadedModel,
    specs: Sequence[str],
    records: list[Record],
    settings: EvaluationSettings,
    *,
    cache: bool,
) -> HarmfulData:
    """Make calibration rows ready: the model answers those that came without a response, under a progress bar."""
    records = _answered(terminal, opened, records, settings, cache)
    own, refused = own_answers(records)
    if refused:
        terminal.warn(
            f"{refused} of {own} own answers read as refusals: statistics of those rows are not about harm: name a "
            "file with harmful responses, or leave the rows out"
        )
    return HarmfulData(tuple(specs), records, settings.renderer(opened.tokenizer))


def _answered(
    terminal: Terminal, opened: LoadedModel, records: list[Record], settings: EvaluationSettings, cache: bool
) -> list[Record]:
    asked = sum(map(needs_own_answer, records))
    if not asked:
        return records
    require_in_memory(opened, "the answers that harmful rows lack", "name a file with responses")
    unread = answer_columns(record.extra for record in records if needs_own_answer(record))
    hint = f" (if '{unread[0]}' is one, map it, as in response={unread[0]})" if unread else ""
    terminal.say(f"{asked} harmful rows have no response: the model answers them itself{hint}")
    with terminal.progress("own answers", asked, "answers") as advance:
        return with_own_answers(
            opened.model,
            records,
            settings.renderer(opened.tokenizer),
            settings.max_new_tokens or DEFAULT_NEW_TOKENS,
            identity=opened.identity if cache else None,
            progress=by_steps(advance),
        )


def own_answers(records: Sequence[Record]) -> tuple[int, int]:
    """Return how many rows the model answered itself, and how many of its answers read as refusals."""
    own = _own(records)
    return len(own), sum(refuses(record.response or "") for record in own)


def write_own_answers(path: Path, records: Sequence[Record]) -> None:
    """Write the rows that the model answered itself, in a form that can be read as data again; nothing for none."""
    if own := _own(records):
        write_jsonl(path, map(_row, own))


def _own(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.extra.get(OWN_ANSWER)]


def _row(record: Record) -> dict[str, Any]:
    if not record.history:
        return {"prompt": record.prompt, "response": record.response, "origin": record.origin}
    turns = [{"role": turn.role, "content": turn.content} for turn in record.conversation()]
    return {"messages": [*turns, {"role": "assistant", "content": record.response}], "origin": record.origin}
