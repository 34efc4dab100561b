"""``antidote evaluate`` under openings and conditions, and with answers that other programs generate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from antidote_llm.evaluation.endpoint import RetryPolicy
from antidote_llm.evaluation.evaluation import Evaluation
from tests import tiny
from tests.cli.command import Command, Place, edit_json, tree
from tests.evaluation import vllm_stand_in
from tests.evaluation.openai_server import Body, Serving, serving

OPENING = f"{tiny.WORDS[3]} {tiny.WORDS[4]}"
HARDER = [word for name in ("plain", "prefill", "system", "tokens-3", "tokens-9") for word in ("--condition", name)]


def arguments(place: Place, *more: object) -> list[object]:
    asked = ["--harmful", place.harmful, "--task", f"t={place.harmful}", "--max-new-tokens", "5"]
    return ["evaluate", place.base, "--adapter", place.adapter, *asked, *more]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(RetryPolicy, "__init__", _impatient(RetryPolicy.__init__))
    with serving(Serving()) as does:
        yield does


def _impatient(init: object) -> object:
    return lambda self: init(self, timeout_s=5, retries=1, first_wait_s=0.01)  # type: ignore[operator]


def served(server: Serving, place: Place, *more: object) -> list[object]:
    return ["evaluate", "--endpoint", f"{server.url}#my-model", "--harmful", place.harmful, *more]


def test_conditions_stand_beside_each_other_with_intervals(place: Place, antidote: Command) -> None:
    asked = arguments(place, *HARDER, "--prefill", OPENING, "--out", place.out)
    said = antidote.done(*asked, "--json").json
    conditions = said.pop("conditions")
    assert list(conditions) == HARDER[1::2]
    assert Evaluation.read(place.out).model_dump(mode="json") == said
    assert said["settings"]["prefill"] == OPENING
    changed = {"prefill": (OPENING, 5), "tokens-3": (None, 3), "tokens-9": (None, 9)}
    for name, found in conditions.items():
        assert Evaluation.read(place.out / "conditions" / name).model_dump(mode="json") == found
        assert found["metrics"].keys() == {"compliance_rate", "refusal_rate", "incoherent_rate"}
        assert found["metrics"]["refusal_rate"]["n"] == 12
        prefill, tokens = changed.get(name, (None, 5))
        assert (found["settings"]["prefill"], found["settings"]["max_new_tokens"]) == (prefill, tokens)
    assert conditions["prefill"]["metrics"] == {
        name: said["metrics"][name] for name in conditions["prefill"]["metrics"]
    }
    manifest = json.loads((place.out / "manifest.json").read_text())
    assert manifest["opening_ids"] == tiny.tokenizer()(OPENING)["input_ids"]

    before = tree(place.root)
    again = antidote.done(*asked, "--json")
    assert again.json == {**said, "conditions": conditions} and "finished already" in again.err
    assert "tokens-9" in antidote.done(*asked).out
    assert antidote(*asked, "--condition", "tokens-2").code == 2
    assert tree(place.root) == before


def test_the_answers_of_a_condition_are_those_that_it_has_by_itself(place: Place, antidote: Command) -> None:
    antidote.done(*arguments(place, *HARDER, "--prefill", OPENING, "--out", place.out))
    alone = place.root / "alone"
    antidote.done(*arguments(place, "--max-new-tokens", "9", "--out", alone))
    answers = [answer for answer in Evaluation.read(alone).answers if answer.suite == "harmful"]
    assert list(Evaluation.read(place.out / "conditions" / "tokens-9").answers) == answers
    short = Evaluation.read(place.out / "conditions" / "tokens-3").answers
    assert all(longer.answer.startswith(shorter.answer) for shorter, longer in zip(short, answers, strict=True))


def test_harder_is_all_of_them(place: Place, antidote: Command) -> None:
    edit_json(place.base / "config.json", max_position_embeddings=512)
    asked = ["evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", "2", "--harder", "--json"]
    assert "no words for the opening 'Sure, here is'" in antidote(*asked).err
    found = antidote.done(*asked, "--prefill", OPENING).json["conditions"]
    assert list(found) == ["plain", "prefill", "system", "tokens-30", "tokens-256"]
    assert found["system"]["settings"]["system"] == "You are a helpful assistant."


def test_vllm_answers_what_transformers_does(place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    own = antidote.done(*arguments(place, "--json")).json
    engines = vllm_stand_in.install(monkeypatch)
    found = antidote.done(*arguments(place, "--json", "--backend", "vllm", "--out", place.out)).json
    assert found == own
    again = antidote.done(*arguments(place, "--json", "--backend", "vllm", "--out", place.out))
    assert again.json == found
    (engine,) = engines.started
    assert (engine.model, engine.settings["max_lora_rank"]) == (str(place.base), 8)
    assert {request and Path(request.lora_path) for request in engine.requests} == {place.adapter}
    assert "other inputs or settings" in antidote(*arguments(place, "--out", place.out)).err


def test_a_served_model_is_evaluated_without_one_here(place: Place, antidote: Command, server: Serving) -> None:
    asked = served(server, place, "--harmless", place.harmful, "--max-new-tokens", "7", "--out", place.out)
    said = antidote.done(*asked, *HARDER, "--json").json
    assert said["metrics"]["compliance_rate"] == {**said["metrics"]["compliance_rate"], "value": 100, "n": 12}
    assert list(said["conditions"]) == HARDER[1::2]
    assert {body["max_tokens"] for body in server.seen} == {3, 7, 9}
    assert Evaluation.read(place.out).answers[0].answer.startswith("answer to ")
    asked_before = len(server.seen)
    assert "finished already" in antidote.done(*asked, *HARDER).err
    assert len(server.seen) == asked_before
    assert "my-model" in antidote.done(*asked[:-2]).out


def test_a_server_that_goes_down_ends_in_one_line_and_is_gone_on_with(
    place: Place, antidote: Command, server: Serving, own_cache: Path
) -> None:
    asked = served(server, place, "--out", place.out)
    server.down_after = 7
    result = antidote(*asked)
    assert result.code == 2 and len(result.errors) == 1
    assert f"{server.url}/chat/completions" in result.errors[0] and "run again" in result.errors[0]
    assert not place.out.exists() and not any(place.root.glob("**/*.partial"))

    server.down_after = None
    again = antidote.done(*asked)
    assert "7 of 12 answers are kept" in again.err
    assert len(server.seen) == 12
    assert not any((own_cache / "answers").iterdir())


def test_a_prompt_without_a_usable_answer_is_counted_and_shown(
    server: Serving, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-Zorb1k-4Tw9mAd7RunKad0"
    monkeypatch.setenv("ANTIDOTE_ENDPOINT_KEY", key)
    odd: list[str] = []

    def reply(body: Body) -> str:
        asked = body["messages"][-1]["content"]
        odd.extend([] if odd else [asked])
        return "\ud800" if asked == odd[0] else f"zob {key} run \x1b[2J"

    server.reply = reply
    for _ in range(2):
        result = antidote.done(*served(server, place), "--out", place.out)
        assert "no usable answer" in result.out
    found = Evaluation.read(place.out)
    assert found.unanswered == 1
    assert {answer.answer for answer in found.answers} == {"", "zob [key] run \x1b[2J"}
    assert [answer.outcome for answer in found.answers if not answer.answer] == ["harmful"]
    written = b"".join(path.read_bytes() for path in place.root.rglob("*") if path.is_file())
    assert key.encode() not in written and set(server.keys) == {f"Bearer {key}"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--condition", "prefil"], ("--condition prefil", "did you mean prefill")),
        (["--condition", "tokens-500"], ("condition tokens-500", "positions", "--condition")),
        (["--condition", "prefill"], ("condition prefill", "no words", "--prefill")),
        (["--prefill", " "], ("--prefill", "at least a word")),
        (["--prefill", "affirmative"], ("no words for the opening 'Sure, here is'",)),
        (["--backend", "vlm"], ("--backend vlm", "did you mean vllm")),
        (["--backend", "endpoint"], ("--endpoint http://",)),
        (["--endpoint", "http://localhost:1/v1#m"], ("leave MODEL and --adapter out",)),
        (["--endpoint", "http://localhost:1/v1#m", "--backend", "vllm"], ("does not go with --endpoint",)),
    ],
)
def test_what_cannot_be_asked_so(place: Place, antidote: Command, options: list[str], words: tuple[str, ...]) -> None:
    before = tree(place.root)
    result = antidote("evaluate", place.base, "--harmful", place.harmful, "--out", place.out, *options)
    assert result.code == 2 and len(result.errors) == 1
    for word in words:
        assert word in result.errors[0]
    assert tree(place.root) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ("no MODEL", "--endpoint")),
        (["--endpoint", "localhost:1"], ("--endpoint localhost:1", "#my-model")),
        (["--endpoint", "ftp://host/v1#m"], ("ftp://host/v1", "address")),
        (["--endpoint", "http://localhost:1/v1#m", "--template", "alpaca"], ("--template alpaca", "endpoint")),
        (["--endpoint", "http://localhost:1/v1#m", "--thinking"], ("--thinking",)),
        (["--endpoint", "http://localhost:1/v1#m", "--judge", "likelihood-margin"], ("likelihood-margin", "itself")),
    ],
)
def test_what_a_served_model_cannot_be_asked(
    place: Place, antidote: Command, options: list[str], words: tuple[str, ...]
) -> None:
    result = antidote("evaluate", "--harmful", place.harmful, *options)
    assert result.code == 2 and len(result.errors) == 1
    for word in words:
        assert word in result.errors[0]


def test_the_likelihood_margin_can_be_asked_for_under_conditions(place: Place, antidote: Command) -> None:
    openings = place.write("openings.yaml", f"refusals: [{tiny.WORDS[1]}]\naffirmatives: [{tiny.WORDS[2]}]\n")
    asked = ["evaluate", place.base, "--harmful", place.harmful, "--judge", f"likelihood-margin={openings}"]
    found = antidote.done(*asked, "--condition", "plain", "--condition", "prefill", "--prefill", OPENING, "--json")
    assert list(found.json["conditions"]) == ["plain", "prefill"]
    antidote.done(*asked, "--condition", "plain")


def test_conditions_need_harmful_prompts(place: Place, antidote: Command) -> None:
    result = antidote("evaluate", place.base, "--task", f"t={place.harmful}", "--harder")
    assert result.code == 2 and "--harmful" in result.errors[0]


def test_vllm_that_is_not_installed_says_how_to(place: Place, antidote: Command) -> None:
    result = antidote(*arguments(place, "--backend", "vllm"))
    assert result.code == 2 and "pip install 'antidote-llm[vllm]'" in result.errors[0]
