"""``antidote evaluate``: numbers with intervals, kept once."""

from __future__ import annotations

import json
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antidote_llm.evaluation.evaluation import Evaluation
from tests.cli.command import Command, Place, tree


def arguments(place: Place, *more: object) -> list[object]:
    asked = ["--harmful", place.harmful, "--harmless", place.harmful, "--task", f"t={place.harmful}"]
    return ["evaluate", place.base, "--adapter", place.adapter, *asked, "--max-new-tokens", "4", *more]


def test_metrics_have_a_value_an_interval_and_a_count(place: Place, antidote: Command) -> None:
    before = tree(place.root)
    metrics = antidote.done(*arguments(place, "--json")).json["metrics"]
    assert tree(place.root) == before
    wanted = {"compliance_rate", "refusal_rate", "incoherent_rate", "over_refusal_rate", "tasks.t"}
    assert wanted <= metrics.keys()
    for name in wanted:
        assert 0 <= metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"] <= 100
        assert metrics[name]["n"] == 12


def test_answers_are_kept_and_read_back(place: Place, antidote: Command) -> None:
    said = antidote.done(*arguments(place, "--json"), "--out", place.out).json
    kept = Evaluation.read(place.out)
    assert kept.model_dump(mode="json") == said
    before = tree(place.root)
    again = antidote.done(*arguments(place, "--json"), "--out", place.out)
    assert "finished already" in again.err and again.json == said
    assert tree(place.root) == before
    assert antidote(*arguments(place), "--out", place.out, "--task-match", "prefix").code == 2
    assert tree(place.root) == before


@pytest.mark.parametrize("command", ["evaluate", "repair"])
def test_answers_to_prompts_rendered_otherwise_are_not_those_asked_for(
    place: Place, antidote: Command, command: str
) -> None:
    row = '{"input_ids": [5, 6, 7, 8]}\n{"input_ids": [6, 7, 8, 9]}\n'
    asked = arguments(place, "--out", place.out)
    if command == "repair":
        # Token ids to learn from, which no template touches: the questions alone are rendered otherwise.
        learnt = ["repair", place.base, "--adapter", place.adapter, "--harmful", place.write("ids.jsonl", row)]
        asked = [*learnt, "--evaluate", place.harmful, "--max-new-tokens", "4", "--out", place.out]
    antidote.done(*asked)
    template = place.base / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", ""))
    assert "other inputs or settings" in antidote(*asked).err


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_category_that_is_no_text_is_left_out(place: Place, antidote: Command, kind: str) -> None:
    if kind == "jsonl":
        rows = place.write("rows.jsonl", '{"prompt": "zob", "category": NaN}\n')
    else:
        rows = place.root / "rows.parquet"
        pq.write_table(pa.table({"prompt": ["zob"], "category": [datetime(2026, 1, 2)]}), rows)
    antidote.done("evaluate", place.base, "--harmful", rows, "--max-new-tokens", "2", "--out", place.out)
    assert Evaluation.read(place.out).by_category == {}


def test_other_gold_answers_in_tokens_are_not_those_asked_for(place: Place, antidote: Command) -> None:
    row = {"input_ids": [5, 6, 7, 8], "response_start": 2}
    rows = place.write("rows.jsonl", json.dumps(row))
    asked = ["evaluate", place.base, "--task", f"t={rows}", "--max-new-tokens", "2", "--out", place.out]
    antidote.done(*asked)
    place.write("rows.jsonl", json.dumps({**row, "input_ids": [5, 6, 7, 9]}))
    assert "other inputs or settings" in antidote(*asked).err


def test_a_model_without_adapter_is_evaluated_too(place: Place, antidote: Command) -> None:
    result = antidote.done("evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", "4")
    assert "complies" in result.out


@pytest.mark.parametrize(
    ("options", "title"),
    [(["--harmful"], "harmful requests"), (["--harmful", "--harmless"], "harmful and harmless requests")],
)
def test_a_table_is_headed_by_what_was_asked(place: Place, antidote: Command, options: list[str], title: str) -> None:
    asked = [word for option in options for word in (option, place.harmful)]
    result = antidote.done("evaluate", place.base, *asked, "--max-new-tokens", "4")
    assert title in [line.strip() for line in result.out.splitlines()]
