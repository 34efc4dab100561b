"""The harmful rows that a repair learns from: read, mixed, and answered by the model where they have no response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from antidote_llm.workflows.opening import require_in_memory
from antidote_llm.workflows.reporter import Reporter, by_steps

OWN_ANSWERS_FILE = "own_answers.jsonl"


def read_harmful(specs: Sequence[str], limit: int | None, seed: int) -> list[Record]:
    """Read and mix the harmful rows; nothing where no data is named.

    Raises:
        UserError: A file cannot be read, or has too few rows for its share.
    """
    return read_mixed([DataSpec.parse(spec) for spec in specs], limit, seed, ("prompt",)) if specs else []


def harmful_data(
    reporter: Reporter,
    opened: LoadedModel,
    specs: Sequence[str],
    records: list[Record],
    settings: EvaluationSettings,
    *,
    cache: bool,
) -> HarmfulData:
    """Make calibration rows ready: the model answers those that came without a response."""
    records = _answered(reporter, opened, records, settings, cache)
    own, refused = own_answers(records)
    if refused:
        reporter.warn(
            f"{refused} of {own} own answers read as refusals: statistics of those rows are not about harm: name a "
            "file with harmful responses, or leave the rows out"
        )
    return HarmfulData(tuple(specs), records, settings.renderer(opened.tokenizer))


def _answered(
    reporter: Reporter, opened: LoadedModel, records: list[Record], settings: EvaluationSettings, cache: bool
) -> list[Record]:
    asked = sum(map(needs_own_answer, records))
    if not asked:
        return records
    require_in_memory(opened, "the answers that harmful rows lack", "name a file with responses")
    unread = answer_columns(record.extra for record in records if needs_own_answer(record))
    hint = f" (if '{unread[0]}' is one, map it, as in response={unread[0]})" if unread else ""
    reporter.say(f"{asked} harmful rows have no response: the model answers them itself{hint}")
    with reporter.progress("own answers", asked, "answers") as advance:
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
