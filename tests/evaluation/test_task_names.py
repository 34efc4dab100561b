"""Known tasks: the paper's, and those of other packages."""

from __future__ import annotations

from pathlib import Path

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
from antidote_llm.evaluation.tasks.task import TASK_GROUP, load_task, task_names
from tests import tiny
from tests.evaluation import other_packages

ACME = """
    from antidote_llm import UserError
    from antidote_llm.evaluation.tasks.task import Task


    def last_word(answer, gold):
        if gold == "zob":
            raise ValueError("no zob")
        return answer[-3:] == gold[-3:]


    ENDS_ALIKE = Task("ends-alike", "last word", "none", 3, 5, last_word)
    NO_TASK = "ends-alike"
"""
ENTRIES = {"ends-alike": "ENDS_ALIKE", "missing": "MISSING", "no-task": "NO_TASK"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_packages.install(tmp_path, monkeypatch, "acme-tasks", TASK_GROUP, ENTRIES, ACME)


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
    task = load_task("ends-alike")
    assert task is not None and (task.metric, task.rows, task.new_tokens) == ("last word", 3, 5)
    assert task.scoring().correct(["", ""], ["a kad", "a run"], ["kad", "kad"]) == [True, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", " cannot be loaded: AttributeError: .*: reinstall acme-tasks"), ("no-task", r".* is not a .*\.Task")],
)
def test_a_broken_task_names_its_package(installed: None, name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^task '{name}' of the package acme-tasks{message}"):
        load_task(name)


def test_an_error_while_scoring_names_the_task_and_its_package(installed: None) -> None:
    task = load_task("ends-alike")
    assert task is not None
    with pytest.raises(UserError, match=r"^task 'ends-alike' of the package acme-tasks failed: ValueError: no zob: "):
        task.scoring().correct([""], ["kab"], ["zob"])


def test_two_tasks_of_one_name_are_an_error_that_names_both_packages(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"ends-alike": "ENDS_ALIKE", "sst2": "ENDS_ALIKE"}
    other_packages.install(tmp_path, monkeypatch, "beta-tasks", TASK_GROUP, more, ACME)
    with pytest.raises(UserError, match=r"^acme-tasks and beta-tasks each have a task 'ends-alike': uninstall one"):
        load_task("ends-alike")
    with pytest.raises(UserError, match=r"^antidote-llm and beta-tasks each have a task 'sst2'"):
        load_task("sst2")


def test_a_win_rate_needs_an_endpoint() -> None:
    alpacaeval = load_task("alpacaeval")
    assert alpacaeval is not None
    with pytest.raises(UserError, match="task_endpoint"):
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


def test_the_user_and_the_model_s_positions_limit_a_task_s_length(
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
