"""``antidote evaluate`` on tasks by name, perplexity and lm-eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antidote_llm.evaluation.evaluation import Evaluation
from tests import tiny
from tests.cli.command import Command, Place, tree
from tests.evaluation import lm_eval_stand_in
from tests.evaluation.test_lm_eval_bridge import forget
from tests.evaluation.test_win_rate import comparing, longer


def evaluate(place: Place, *more: object) -> list[object]:
    return ["evaluate", place.base, "--max-new-tokens", "4", *more]


def sst2(place: Place, rows: int = 12) -> Path:
    """Write SST-2's own file."""
    lines = [f"{tiny.words(4, index)}\t{index % 2}" for index in range(rows)]
    return place.write("dev.tsv", "sentence\tlabel\n" + "\n".join(lines) + "\n")


def labelled(place: Place) -> Path:
    rows = [{"prompt": tiny.words(4, index), "response": ("positive", "negative")[index % 2]} for index in range(12)]
    return place.write("labelled.jsonl", "\n".join(map(json.dumps, rows)))


def text(place: Place) -> Path:
    return place.write("text.jsonl", "\n".join(json.dumps({"text": tiny.words(60, seed)}) for seed in range(5)))


def test_a_known_task_reads_its_own_file_and_the_first_rows(place: Place, antidote: Command) -> None:
    asked = evaluate(place, "--task", f"sst2@{sst2(place)}", "--task-rows", "5", "--out", place.out)
    antidote.done(*asked)
    found = Evaluation.read(place.out)
    assert [answer.gold for answer in found.answers] == ["negative", "positive", "negative", "positive", "negative"]
    assert all("sentiment" in answer.prompt for answer in found.answers)
    assert (found.tasks["sst2"].metric, found.tasks["sst2"].max_new_tokens) == ("label named", 32)
    assert "other inputs or settings" in antidote(*asked, "--task-max-new-tokens", "3").err


def test_a_name_alone_is_the_task_s_own_data(place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("own/sst2/test.tsv", sst2(place).read_text())
    monkeypatch.setenv("ANTIDOTE_DATA", str(place.root / "own"))
    metrics = antidote.done(*evaluate(place, "--task", "sst2", "--json")).json["metrics"]
    assert metrics["tasks.sst2"]["n"] == 12


def test_a_known_task_keeps_its_metric_on_other_data(place: Place, antidote: Command) -> None:
    said = antidote.done(*evaluate(place, "--task", f"sst2={labelled(place)}", "--json")).json
    assert said["tasks"]["sst2"]["metric"] == "label named"
    said = antidote.done(*evaluate(place, "--task", f"mine={labelled(place)}", "--json")).json
    assert said["tasks"]["mine"] == {"metric": "exact match", "max_new_tokens": 4}


def test_alpacaeval_is_won_against_the_reference_by_a_judge_s_word(place: Place, antidote: Command) -> None:
    rows = [{"instruction": tiny.words(3, index), "output": "r" * (index % 2 * 999 + 1)} for index in range(710)]
    # References that are empty count as rows all the same.
    rows[247]["output"] = rows[504]["output"] = ""
    file = place.write("alpaca_eval.json", json.dumps(rows))
    with comparing(longer) as (endpoint, seen):
        asked = evaluate(place, "--task", f"alpacaeval@{file}", "--task-endpoint", f"{endpoint.url}#comparer")
        said = antidote.done(*asked, "--task-max-new-tokens", "8", "--json").json
    assert [
        shown["request"] for shown in seen if shown["request"] not in [row["instruction"] for row in rows[701:]]
    ] == []
    estimate = said["metrics"]["tasks.alpacaeval"]
    # Rows 701 to 709: five references of a thousand letters, and four of one letter.
    assert (estimate["n"], estimate["value"]) == (9, pytest.approx(100 * 4 / 9))
    assert said["tasks"]["alpacaeval"]["metric"] == "win rate by comparer, seed 0"


def test_perplexity_is_measured_alone_and_beside_answers_and_kept(place: Place, antidote: Command) -> None:
    asked = evaluate(place, "--perplexity", text(place), "--perplexity-window", "32")
    alone = antidote.done(*asked, "--json").json
    assert (alone["perplexity"]["tokens"], alone["perplexity"]["stride"]) == (299, 16)
    assert alone["metrics"] == {}
    assert 1 < alone["perplexity"]["low"] < alone["perplexity"]["value"] < alone["perplexity"]["high"]
    both = [*asked, "--harmful", place.harmful, "--out", place.out]
    shown = antidote.done(*both)
    assert "exp(nats a token)" in shown.out and "complies" in shown.out
    kept = Evaluation.read(place.out)
    assert kept.perplexity is not None and kept.perplexity.value == alone["perplexity"]["value"]
    before = tree(place.root)
    again = antidote.done(*both, "--json")
    assert "finished already" in again.err and again.json["perplexity"] == alone["perplexity"]
    assert "other inputs or settings" in antidote(*both, "--perplexity-stride", "8").err
    assert tree(place.root) == before


def test_an_adapter_changes_perplexity(place: Place, antidote: Command) -> None:
    asked = evaluate(place, "--perplexity", text(place), "--json")
    base, adapted = antidote.done(*asked).json, antidote.done(*asked, "--adapter", place.adapter).json
    assert base["perplexity"]["value"] != adapted["perplexity"]["value"]


def test_lm_eval_results_stand_beside_ours(place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.syspath_prepend(lm_eval_stand_in.write(place.root / "site"))
    asked = evaluate(place, "--lm-eval", "arc_easy, hellaswag", "--task-rows", "3", "--out", place.out)
    said = antidote.done(*asked, "--json")
    assert said.json["lm_eval"]["hellaswag"]["acc"] == {
        "value": 1 / tiny.VOCABULARY_SIZE,
        "stderr": 0.01,
        "higher_is_better": True,
        "n": 3,
    }
    assert "arc_easy" in antidote.done(*asked).out
    forget()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "sst3"), ("did you mean 'sst2'", "gsm8k", "name the task")),
        (("--task", "sst2@nowhere.tsv"), ("nowhere.tsv",)),
        (("--task", "sst2@"), ("--task sst2@", "name the task")),
        (("--task", "sst2=harmful.jsonl"), ("harmful.jsonl", "response to compare with (label named)")),
        (("--task", "gsm8k=harmful.jsonl"), ("harmful.jsonl", "final number")),
        (("--task", "alpacaeval"), ("--task-endpoint URL#MODEL",)),
        (
            ("--task", "alpacaeval=harmful.jsonl", "--task-endpoint", "http://localhost:1/v1"),
            ("address and the model",),
        ),
        (("--task", "alpacaeval@short.json", "--task-endpoint", "http://localhost:1/v1#m"), ("first 3 rows",)),
        (("--task", "t=harmful.jsonl", "--task-rows", "13"), ("--task-rows 13", "12 rows", "12 or fewer")),
        (("--task", "t=harmful.jsonl", "--task-rows", "0"), ("--task-rows",)),
        (("--perplexity", "nowhere.jsonl"), ("nowhere.jsonl", "no such")),
        (("--perplexity", "harmful.jsonl"), ("harmful.jsonl", "text=COLUMN")),
        (("--perplexity", "text.jsonl", "--perplexity-window", "129"), ("128 positions",)),
        (("--perplexity", "text.jsonl", "--perplexity-window", "1"), ("--perplexity-window",)),
        (("--perplexity-stride", "4"), ("for --perplexity",)),
        (("--lm-eval", "arc_easy"), ("not installed", "pip install 'antidote-llm[lm-eval]'")),
        ((), ("nothing to ask", "--perplexity", "--lm-eval")),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    place: Place,
    antidote: Command,
    options: tuple[object, ...],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    text(place)
    place.write("short.json", json.dumps([{"instruction": "zob", "output": "mid"}] * 3))
    before = tree(place.root)
    result = antidote(*evaluate(place, *options, "--out", place.out))
    assert result.code == 2, result.err
    # The parser of options frames what it says.
    for word in words:
        assert word in " ".join(result.err.split()), result.err
    assert tree(place.root) == before
