"""Judges on the command line: a panel, a served judge that goes away, and the margin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.evaluation import endpoint as endpoint_module
from antidote_llm.evaluation.endpoint import RetryPolicy
from antidote_llm.evaluation.evaluation import Evaluation
from tests import tiny
from tests.cli.command import Command, Place
from tests.evaluation.judges import models
from tests.evaluation.server import Reply, last_turn, said, serving, status


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "RetryPolicy", lambda: RetryPolicy(retries=1, first_wait_s=0.01))


def asked(place: Place, *judges: object) -> list[object]:
    named = [argument for judge in judges for argument in ("--judge", judge)]
    suites = ["--harmful", place.harmful, "--harmless", place.harmful, "--max-new-tokens", "4"]
    return ["evaluate", place.base, *suites, *named]


def openings(place: Place) -> Path:
    texts = {"refusals": [tiny.WORDS[0]], "affirmatives": [f"{tiny.WORDS[1]} {tiny.WORDS[2]}", tiny.WORDS[3]]}
    return place.write("openings.json", json.dumps(texts))


def test_a_panel_reports_each_judge_and_where_they_differ(place: Place, antidote: Command) -> None:
    dam = models.classifier(place.root / "dam", fires="self_harm")
    # To the oracle all that a model without its words says is incoherent.
    judges = ("refusal-patterns", f"beaver-dam={dam}", "oracle", f"likelihood-margin={openings(place)}")
    command = asked(place, *judges)
    result = antidote.done(*command, "--out", place.out)
    assert all(words in result.out for words in ("by judge", "where they differ", "likelihood margin", "harmful 0"))
    assert tiny.WORDS[0] not in result.out

    kept = Evaluation.read(place.out)
    patterns, beaver, _ = kept.judges
    assert (kept.judge, patterns.name) == ("refusal-patterns", "refusal-patterns")
    assert beaver.name.startswith("beaver-dam@") and beaver.metrics["harmful_score"].value == 100
    assert kept.metrics.keys() >= {"compliance_rate", "over_refusal_rate", "affirmative_preferred_rate"}
    assert "harmful_score" not in kept.metrics
    assert {answer.opinions[1].flagged for answer in kept.answers} == {("self_harm",)}
    again = antidote.done(*command, "--out", place.out, "--json")
    assert "finished already" in again.err
    assert again.json["disagreements"][0]["judges"] == ["refusal-patterns", beaver.name]


def test_another_panel_is_another_result(place: Place, antidote: Command) -> None:
    dam = models.classifier(place.root / "dam", fires="self_harm")
    antidote.done(*asked(place, f"beaver-dam={dam}"), "--out", place.out)
    models.classifier(dam, fires="privacy_violation")
    assert "other inputs or settings" in antidote(*asked(place, f"beaver-dam={dam}"), "--out", place.out).err


def test_the_margin_alone_generates_nothing(place: Place, antidote: Command) -> None:
    result = antidote.done(*asked(place, f"likelihood-margin={openings(place)}"), "--json")
    assert set(result.json["metrics"]) == {"affirmative_preferred_rate", "harmless_refusal_preferred_rate"}
    assert result.json["mean_margins"]["harmful"]["n"] == 12
    assert "answering: likelihood-margin" in result.err and "answering " not in result.err


def test_a_served_judge_that_goes_away_ends_clearly_and_its_words_are_kept(place: Place, antidote: Command) -> None:
    judged = 0

    def reply(body: Any) -> Reply:
        nonlocal judged
        assert json.loads(last_turn(body)).keys() == {"request", "answer"}
        judged += 1
        return status(503, "gone") if 5 < judged < 30 else said("HARMFUL")

    with serving(reply) as server:
        command = [*asked(place, f"endpoint={server.url}#judge"), "--json"]
        result = antidote(*command, "--out", place.out)
        assert result.code == 2 and len(result.errors) == 1
        assert "status 503 (gone), 2 times" in result.err
        assert not place.out.exists()
        judged = 100
        found = antidote.done(*command, "--out", place.out).json
        assert judged - 100 < 12
    assert found["judge"] == "endpoint@judge"
    assert found["metrics"]["harmful_score"]["value"] == 100


def test_one_odd_verdict_is_counted_as_the_worst_and_shown(place: Place, antidote: Command) -> None:
    odd: list[str] = []

    def reply(body: Any) -> Reply:
        asked = json.loads(last_turn(body))["request"]
        odd.extend([] if odd else [asked])
        return (200, b"[" * 99_999, {"Retry-After": "1e400"}) if asked == odd[0] else said("REFUSAL")

    with serving(reply) as server:
        command = ["evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", "4"]
        result = antidote.done(*command, "--judge", f"endpoint={server.url}#judge", "--out", place.out)
    assert "endpoint@judge │      1" in result.out and "counted as harmful, unless" in result.out
    found = Evaluation.read(place.out)
    assert found.judges[0].unreadable == sum(answer.prompt == odd[0] for answer in found.answers) == 1
    worst = [answer.outcome for answer in found.answers if answer.prompt == odd[0]]
    assert worst in (["harmful"], ["incoherent"], ["refusal"])


def test_a_key_goes_to_one_server(place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTIDOTE_ENDPOINT_KEY", "own-key-1234")
    with serving(lambda _: said("REFUSAL")) as one, serving(lambda _: said("REFUSAL")) as other:
        judges = (f"endpoint={one.url}#one", f"endpoint={other.url}#other")
        result = antidote(*asked(place, *judges))
        assert result.code == 2 and len(result.errors) == 1
        assert "ANTIDOTE_ENDPOINT_URL" in result.errors[0] and "own-key-1234" not in result.err
        assert one.asked == other.asked == []
        monkeypatch.setenv("ANTIDOTE_ENDPOINT_URL", one.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-1234")
        antidote.done(*asked(place, *judges), "--out", place.out)
    assert {headers.get("Authorization") for _, _, headers in one.asked} == {"Bearer own-key-1234"}
    assert {headers.get("Authorization") for _, _, headers in other.asked} == {None}
    written = b"".join(path.read_bytes() for path in place.out.rglob("*") if path.is_file())
    assert b"own-key-1234" not in written and b"sk-openai-1234" not in written


def test_a_repair_is_judged_by_a_panel(place: Place, antidote: Command) -> None:
    dam = models.classifier(place.root / "dam", fires="self_harm")
    out = place.root / "fixed"
    command = ["repair", place.base, "--adapter", place.adapter, "--harmful", place.harmful, "--max-new-tokens", "3"]
    found = antidote.done(*command, "--judge", f"beaver-dam={dam}", "--judge", "refusal-patterns", "--out", out)
    assert "after: refusal-patterns" in found.out
    kept = Evaluation.read(out / "record" / "after")
    assert [judge.measures for judge in kept.judges] == ["harmful_score", "compliance_rate"]
    assert kept.metrics["harmful_score"].value == 100


BAD = {
    "unknown": ("orakel", ("unknown judge 'orakel'", "did you mean 'oracle'")),
    "nowhere": ("beaver-dam=./nowhere", ("judge 'beaver-dam'", "./nowhere: no such folder")),
    "no label": ("text-classification=base", ("is LlamaForCausalLM, not a sequence classifier",)),
    "no place": ("text-classification", ("takes something after its name",)),
    "a place too many": ("refusal-patterns=here", ("takes nothing after its name", "pass --judge refusal-patterns")),
    "no model": ("endpoint=http://localhost:8000/v1", ("name the address and the model",)),
    "no openings": ("likelihood-margin=nothing.yaml", ("nothing.yaml: openings cannot be read",)),
    "other openings": ("likelihood-margin", ("no words for the opening", "likelihood-margin=openings.yaml")),
}


@pytest.mark.parametrize("case", BAD)
def test_a_judge_that_cannot_be_had_is_one_line_before_anything_is_asked(
    place: Place, antidote: Command, case: str
) -> None:
    judge, words = BAD[case]
    result = antidote(*asked(place, judge), "--out", place.out)
    assert result.code == 2 and len(result.errors) == 1
    assert all(word in result.err for word in words), result.err
    assert not place.out.exists() and "answers/s" not in result.err


def test_the_margin_of_a_served_model_cannot_be_had(place: Place, antidote: Command) -> None:
    with serving(lambda _: said("zob")) as server:
        served = ["evaluate", "--endpoint", f"{server.url}#m", "--harmful", place.harmful]
        result = antidote(*served, "--judge", f"likelihood-margin={openings(place)}")
    assert result.code == 2 and "needs the model itself" in result.err
    assert server.asked == []


def test_a_judge_given_twice_is_an_error(place: Place, antidote: Command) -> None:
    result = antidote(*asked(place, "refusal-patterns", "oracle", "oracle"))
    assert (result.code, len(result.errors)) == (2, 1) and "--judge oracle is given twice" in result.err
