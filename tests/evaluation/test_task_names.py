"""Tasks that are known by name: the paper's, and those of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.data.presets import preset_names
from antidote_llm.data.records import Record
from antidote_llm.decision.compare import compare
from antidote_llm.errors import UserError
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.scoring import ByAnswer
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.evaluation.tasks import task
from antidote_llm.evaluation.tasks.task import Task, load_task, task_names
from tests import tiny

HERE = "tests.evaluation.test_task_names"
ENDS_ALIKE = Task("ends-alike", "last word", "none", 3, 5, lambda answer, gold: answer[-3:] == gold[-3:])
NO_TASK = "ends-alike"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntryPoints(
        EntryPoint(name, f"{HERE}:{target}", task.TASK_GROUP)
        for name, target in {"ends-alike": "ENDS_ALIKE", "missing": "MISSING", "no-task": "NO_TASK"}.items()
    )
    monkeypatch.setattr(task, "entry_points", lambda group: entries.select(group=group))


def test_the_paper_s_tasks_have_its_sizes_and_data() -> None:
    found = {name: load_task(name) for name in ("sst2", "agnews", "gsm8k", "alpacaeval")}
    assert {name: one.rows for name, one in found.items() if one} == {
        "sst2": 872,
        "agnews": 1000,
        "gsm8k": 1000,
        "alpacaeval": None,
    }
    assert {one.preset for one in found.values() if one} <= {*preset_names()}
    assert load_task("sst3") is None


def test_other_packages_add_tasks(installed: None) -> None:
    assert "ends-alike" in task_names()
    assert load_task("ends-alike") is ENDS_ALIKE


@pytest.mark.parametrize(("name", "message"), [("missing", "cannot be loaded"), ("no-task", "is no antidote_llm")])
def test_a_broken_task_is_an_error(installed: None, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(name)


def test_a_win_rate_needs_an_endpoint() -> None:
    alpacaeval = load_task("alpacaeval")
    assert alpacaeval is not None
    with pytest.raises(UserError, match="--task-endpoint"):
        alpacaeval.scoring()


def asked(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, is_right: bool, metric: str = "always", tokens: int = 3
) -> Evaluation:
    rows = [Record(prompt=tiny.WORDS[place], response=tiny.WORDS[place + 1]) for place in range(8)]
    scoring = ByAnswer(metric, lambda answer, gold: is_right or answer == gold, tokens)
    suite = Suite(tasks={"own": rows, "other": rows[:2]}, scoring={"own": scoring})
    return evaluate(model, tokenizer, suite, None, EvaluationSettings(max_new_tokens=6))


def test_a_task_is_scored_and_measured_by_its_own_rules(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.generation_config.eos_token_id = None
    found = asked(model, tokenizer, True)
    assert found.metrics["tasks.own"].value == 100
    assert found.metrics["tasks.other"].value == 0
    assert max(answer.new_tokens for answer in found.answers if answer.suite == "tasks.own") == 3
    assert {name: (how.metric, how.max_new_tokens) for name, how in found.tasks.items()} == {
        "own": ("always", 3),
        "other": ("exact match", 6),
    }


def test_a_task_s_own_length_gives_way_to_the_model_s_room_and_to_the_user(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert asked(model, tokenizer, True, tokens=1000).tasks["own"].max_new_tokens == 128 - 4
    settings = EvaluationSettings(max_new_tokens=6, task_max_new_tokens=2)
    suite = Suite(tasks={"own": [Record(prompt="zob", response="mid")]}, scoring={"own": ByAnswer("a", str.__eq__, 9)})
    assert evaluate(model, tokenizer, suite, None, settings).tasks["own"].max_new_tokens == 2


def test_tasks_with_metrics_of_their_own_are_compared_with_the_gain_kept(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    attacked, aligned = asked(model, tokenizer, True), asked(model, tokenizer, False)
    found = compare(attacked, attacked, aligned)
    assert found.changes["tasks.own"].difference.value == 0
    kept = found.gain_kept["own"].estimate
    assert kept is not None and kept.value == 100
    for other in (asked(model, tokenizer, True, "often"), asked(model, tokenizer, True, tokens=2)):
        with pytest.raises(UserError, match="the task own scored by"):
            compare(attacked, other)


def test_a_gold_answer_that_the_metric_cannot_read_is_an_error(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    sst2 = load_task("sst2")
    assert sst2 is not None
    suite = Suite(tasks={"sst2": [Record(prompt="zob", response="great")]}, scoring={"sst2": sst2.scoring()})
    with pytest.raises(UserError, match=r"row 0: a task needs a response .*label named.*not 'great'"):
        evaluate(model, tokenizer, suite, None)
