"""A served model is asked with messages, and its answers are not lost when the server goes down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from antidote_llm.data.records import Record, Turn
from antidote_llm.errors import UserError
from antidote_llm.evaluation.endpoint import Endpoint, RetryPolicy
from antidote_llm.evaluation.judges.refusal_patterns import RefusalPatterns
from antidote_llm.evaluation.scoring import ByAnswer
from antidote_llm.evaluation.served import CONTINUING, evaluate_served
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.cache import KeptLines
from tests import tiny
from tests.evaluation.openai_server import Serving, serving
from tests.evaluation.test_evaluate import HARMFUL, HARMLESS, ByPrompt

SETTINGS = EvaluationSettings(max_new_tokens=6)
IMPATIENT = RetryPolicy(timeout_s=5, retries=3, first_wait_s=0.01)
TASK = {"t": [Record(prompt="zob", response="answer to zob"), Record(prompt="mid", response="kad")]}


@pytest.fixture
def server() -> Iterator[Serving]:
    with serving(Serving()) as does:
        yield does


def endpoint(server: Serving, **more: Any) -> Endpoint:
    return Endpoint(server.url, "my-model", retry_policy=IMPATIENT, concurrency=2, **more)


def test_every_metric_of_a_served_model(server: Serving) -> None:
    judge = ByPrompt()
    found = evaluate_served(endpoint(server), Suite(HARMFUL, HARMLESS, TASK), judge, SETTINGS)

    assert {name: (estimate.value, estimate.n) for name, estimate in found.metrics.items()} == {
        "harmful_score": (40, 5),
        "helpful_rate": (20, 5),
        "refusal_rate": (20, 5),
        "incoherent_rate": (20, 5),
        "over_refusal_rate": (25, 4),
        "harmless_incoherent_rate": (25, 4),
        "tasks.t": (50, 2),
    }
    assert [answer.answer for answer in found.answers] == [f"answer to {answer.prompt}" for answer in found.answers]
    assert {answer.new_tokens for answer in found.answers} == {0}
    assert len(server.seen) == 6, "equal prompts should be sent once"
    for body in server.seen:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("my-model", 0, 6)
        assert not CONTINUING.keys() & body.keys()


def test_conversations_and_system_prompts_are_messages(server: Serving) -> None:
    own = Record(prompt="c", history=(Turn("system", "own"), Turn("user", "a"), Turn("assistant", "b")))
    settings = SETTINGS.model_copy(update={"system": "be kind", "task_max_new_tokens": 3})
    tasks = {"t": [Record(prompt="d", response="e"), Record(prompt=own.prompt, history=own.history, response="x")]}
    evaluate_served(endpoint(server), Suite(tasks=tasks), None, settings)

    assert sorted((body["messages"] for body in server.seen), key=len) == [
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "d"}],
        [
            {"role": "system", "content": "own"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    ]
    assert {body["max_tokens"] for body in server.seen} == {3}


@pytest.mark.parametrize("reply", [" mid run", "zob kad mid run"])
def test_a_prefill_is_the_last_message_and_begins_the_answer_once(server: Serving, reply: str) -> None:
    server.reply = lambda body: reply if body["messages"][-1]["role"] == "assistant" else "plain"
    settings = SETTINGS.model_copy(update={"prefill": "zob kad"})
    found = evaluate_served(endpoint(server), Suite(HARMFUL, HARMLESS), ByPrompt(), settings)

    assert {(answer.suite, answer.answer) for answer in found.answers} == {
        ("harmful", "zob kad mid run"),
        ("harmless", "plain"),
    }
    opened = [body for body in server.seen if body["messages"][-1] == {"role": "assistant", "content": "zob kad"}]
    assert len(opened) == 4
    assert all(body["continue_final_message"] and not body["add_generation_prompt"] for body in opened)
    assert all("continue_final_message" not in body for body in server.seen if body not in opened)


def test_a_thought_is_not_part_of_an_answer(server: Serving) -> None:
    server.reply = lambda body: "<think>run</think>\n\nkad"
    found = evaluate_served(endpoint(server), Suite(HARMFUL[:1]), ByPrompt(), SETTINGS)
    assert found.answers[0].answer == "kad"


def test_a_request_to_a_busy_server_is_retried(server: Serving) -> None:
    server.statuses = [429, 500, 503]
    found = evaluate_served(endpoint(server, key="secret"), Suite(HARMFUL), ByPrompt(), SETTINGS)
    assert len(found.answers) == 5 and not server.statuses
    assert set(server.keys) == {"Bearer secret"}


def test_no_answer_is_lost_when_a_server_goes_down(server: Serving) -> None:
    requests = [Record(prompt=f"{first} {last}") for first in tiny.WORDS[5:8] for last in tiny.WORDS[:3]]
    server.down_after, suite = 4, Suite(requests[:5], requests[5:])
    kept = KeptLines("answers", {"run": 1})
    with pytest.raises(UserError, match="so far are kept"):
        evaluate_served(endpoint(server), suite, ByPrompt(), SETTINGS, kept=kept)
    kept.close()
    assert len(server.seen) == 4 == len(KeptLines("answers", {"run": 1}))

    # The last line is truncated, as by a power failure: that prompt is asked again.
    kept.path.write_bytes(kept.path.read_bytes()[:-20])
    server.down_after, first = None, list(server.seen)
    seen: list[tuple[int, int]] = []
    again = KeptLines("answers", {"run": 1})
    found = evaluate_served(
        endpoint(server), suite, ByPrompt(), SETTINGS, lambda done, total: seen.append((done, total)), again
    )
    again.close(remove=True)
    assert len(server.seen) - len(first) == 9 - 3
    assert found == evaluate_served(endpoint(server), suite, ByPrompt(), SETTINGS)
    assert seen[-1] == (9, 9)
    assert not again.path.exists() and len(KeptLines("answers", {"run": 1})) == 0


def test_a_prompt_without_a_usable_answer_counts_as_the_worst(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{first} {last}" for first in tiny.WORDS[5:9] for last in tiny.WORDS[:3]]
    requests = [Record(prompt=name) for name in names]
    odd = {names[0], names[5]}
    server.reply = lambda body: "half \ud83d" if body["messages"][-1]["content"] in odd else "fine"
    tasks = {"t": [Record(prompt=name, response="fine") for name in names[3:]]}
    impatient = RetryPolicy(timeout_s=5, retries=1, first_wait_s=0.001)
    asked = Endpoint(server.url, "my-model", retry_policy=impatient, concurrency=2)
    judge, suite = RefusalPatterns(), Suite(requests[:3], requests[3:] * 5, tasks)
    with pytest.raises(UserError, match="half a surrogate pair"):
        evaluate_served(asked, suite, judge, SETTINGS)

    odd, suite = {names[0]}, Suite(requests[:3], requests[3:], tasks)
    found = evaluate_served(asked, suite, judge, SETTINGS)
    assert (found.answers[0].answer, found.answers[0].outcome) == ("", "harmful")
    assert found.answers[0].opinions[0].unreadable and found.judges[0].unreadable == 1
    assert found.unanswered == 1 and found.model_dump(mode="json")["unanswered"] == 1
    assert "1 of 21 prompts failed and count as answered in the worst way" in caplog.text

    odd = {names[-1]}
    found = evaluate_served(asked, Suite((), requests[3:]), judge, SETTINGS)
    assert found.metrics["over_refusal_rate"].value == pytest.approx(100 / 9)
    found = evaluate_served(asked, Suite(tasks=tasks), judge, SETTINGS)
    assert found.metrics["tasks.t"].value == pytest.approx(100 * 8 / 9)
    # Even where every answer would count as good, as an empty one may for some judge.
    lenient = Suite(tasks=tasks, scoring={"t": ByAnswer("any", lambda *_: True)})
    assert evaluate_served(asked, lenient, judge, SETTINGS).metrics["tasks.t"].value == pytest.approx(100 * 8 / 9)

    odd = set()
    found = evaluate_served(asked, suite, judge, SETTINGS)
    assert found.unanswered == 0 and "unanswered" not in found.model_dump(mode="json")


def test_answers_of_another_length_are_not_reused(server: Serving) -> None:
    kept = KeptLines("answers", {})
    for tokens in (30, 31, 31):
        settings = EvaluationSettings(max_new_tokens=tokens)
        evaluate_served(endpoint(server), Suite(HARMFUL[:1]), ByPrompt(), settings, kept=kept)
    kept.close(remove=True)
    assert [body["max_tokens"] for body in server.seen] == [30, 31]


@pytest.mark.parametrize(
    ("suite", "settings", "message"),
    [
        (Suite(), SETTINGS, "nothing to ask"),
        (Suite(HARMFUL), SETTINGS, "need a judge"),
        (Suite(tasks={"t": [Record(text="zob", origin="f:3")]}), SETTINGS, "f:3: a text, which no chat endpoint takes"),
        (Suite(tasks={"t": [Record(input_ids=(5, 6))]}), SETTINGS, "a row: token ids, which no chat"),
        (Suite(tasks={"t": [Record(prompt="zob")]}), SETTINGS, "row 0: a task needs a response"),
        (Suite(tasks=TASK), EvaluationSettings(template="alpaca"), "template alpaca"),
        (Suite(tasks=TASK), EvaluationSettings(thinking=True), "thinking: an endpoint"),
    ],
)
def test_an_invalid_row_or_setting_is_named_before_anything_is_sent(
    server: Serving, suite: Suite, settings: EvaluationSettings, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_served(endpoint(server), suite, None, settings)
    assert not server.seen
