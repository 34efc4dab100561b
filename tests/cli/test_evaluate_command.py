"""``antidote evaluate``: numbers with intervals, kept once."""

from __future__ import annotations

from antidote_llm.evaluation import Evaluation
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


def test_a_model_without_adapter_is_evaluated_too(place: Place, antidote: Command) -> None:
    result = antidote.done("evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", "4")
    assert "complies" in result.out
