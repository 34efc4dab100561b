"""The bridge to lm-eval: its calls into the package, and how it reads the results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.errors import UserError
from antidote_llm.evaluation.lm_eval_bridge import LmEvalMetric, metrics_of, require_lm_eval_tasks, run_lm_eval
from tests import tiny
from tests.evaluation import lm_eval_stand_in


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    forget()
    monkeypatch.syspath_prepend(lm_eval_stand_in.write(tmp_path))
    yield tmp_path
    forget()


def test_the_opened_model_is_used_and_left_unchanged(
    stand_in: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    model.train()
    found = run_lm_eval(model, tokenizer, ["arc_easy"], rows=7)
    assert found == {
        "arc_easy": {
            "acc": LmEvalMetric(value=1 / tiny.VOCABULARY_SIZE, stderr=0.01, higher_is_better=True, n=7),
            "exact_match (strict-match)": LmEvalMetric(value=0.5, stderr=None, higher_is_better=True, n=7),
        }
    }
    assert model.training
    assert tokenizer.pad_token == "<|pad|>"
    assert capsys.readouterr().out == ""


def test_a_failure_of_lm_eval_is_a_one_line_error(
    stand_in: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match=r"^lm-eval cannot run breaks: ValueError: Couldn't reach the data$"):
        run_lm_eval(model, tokenizer, ["breaks"])


@pytest.mark.parametrize(
    ("names", "message"),
    [(("arc_esay",), "no such task: did you mean arc_easy"), ((), "names no task"), (("zorbik",), "lists all")],
)
def test_unknown_tasks_are_named(stand_in: Path, names: tuple[str, ...], message: str) -> None:
    require_lm_eval_tasks(["arc_easy", "hellaswag"])
    with pytest.raises(UserError, match=message):
        require_lm_eval_tasks(names)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'antidote-llm\[lm-eval\]'"):
        require_lm_eval_tasks(["arc_easy"])


def test_a_broken_package_is_not_called_missing(stand_in: Path) -> None:
    (stand_in / "lm_eval" / "tasks.py").write_text("import zorbik_datasets")
    with pytest.raises(UserError, match="cannot be imported: No module named 'zorbik_datasets'"):
        require_lm_eval_tasks(["arc_easy"])


@pytest.mark.parametrize("found", [{}, {"results": {"t": {"alias": "t"}}}, {"results": {"t": {"acc,none": "N/A"}}}])
def test_no_numbers_are_an_error(found: dict[str, object]) -> None:
    with pytest.raises(UserError, match="gave no numbers"):
        metrics_of(found)


def test_a_number_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(UserError, match="gives nan for acc of t"):
        metrics_of({"results": {"t": {"acc,none": float("nan")}}})
