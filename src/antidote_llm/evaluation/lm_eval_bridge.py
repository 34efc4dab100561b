"""A bridge to lm-eval: runs any of its tasks on an opened model.

Source: https://github.com/EleutherAI/lm-evaluation-harness, docs/python-api.md.
"""

from __future__ import annotations

import copy
import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.errors import UserError, first_line, setting

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_SUGGESTIONS = 3


class LmEvalMetric(BaseModel):
    """One metric of one task, as lm-eval gives it: mostly a share between 0 and 1, not a percentage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float = Field(description="The metric.")
    stderr: float | None = Field(description="Its standard error; null where lm-eval gives none.")
    higher_is_better: bool | None = Field(default=None, description="What lm-eval says of its direction.")
    n: int | None = Field(default=None, description="How many rows were asked, where lm-eval says so.")


def require_lm_eval_tasks(names: Sequence[str]) -> None:
    """Check that lm-eval is installed and has the tasks.

    Raises:
        UserError: It is not installed, or a task is unknown.
    """
    require_lm_eval()
    if not names:
        raise UserError(
            f"{setting('lm_eval')} names no task: name one or more, as in {setting('lm_eval')} arc_easy,hellaswag"
        )
    known = list(_part("lm_eval.tasks").TaskManager().all_tasks)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=_MOST_SUGGESTIONS)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(
                f"{setting('lm_eval')} {name}: lm-eval has no such task: {hint}`lm-eval ls tasks` lists all"
            )


def lm_eval_version() -> str:
    """Return the version of lm-eval, empty where it has no metadata."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return ""


def run_lm_eval(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    names: Sequence[str],
    rows: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, LmEvalMetric]]:
    """Run tasks of lm-eval with its own prompts and defaults: no chat template, its number of few-shot examples.

    Args:
        model: Any causal language model of transformers, or one with an adapter.
        tokenizer: Its tokenizer; a copy is passed on, since lm-eval changes it.
        names: Tasks or groups of tasks.
        rows: How many rows of each task, from the first; all by default.
        batch_size: Rows in a batch.

    Returns:
        The results by task and by metric, with its filter where it has one.

    Raises:
        UserError: lm-eval is not installed, or cannot run a task.
    """
    require_lm_eval()
    was_training = model.training
    try:
        # lm-eval prints; standard output is for the result alone.
        with redirect_stdout(sys.stderr):
            wrapped = _part("lm_eval.models.huggingface").HFLM(
                pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size
            )
            found = _part("lm_eval").simple_evaluate(model=wrapped, tasks=list(names), limit=rows, log_samples=False)
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"lm-eval cannot run {', '.join(names)}: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        model.train(was_training)
    return metrics_of(found)


def metrics_of(found: Mapping[str, Any]) -> dict[str, dict[str, LmEvalMetric]]:
    """Read the results of ``simple_evaluate``: ``acc,none`` with its standard error ``acc_stderr,none``.

    Raises:
        UserError: They hold no numbers, or one that is not finite.
    """
    tasks = {
        task: {
            _name(metric, filtered): LmEvalMetric(
                value=_finite(value, task, metric),
                stderr=_stderr(values.get(f"{metric}_stderr,{filtered}")),
                higher_is_better=_inner(found, "higher_is_better", task).get(metric),
                n=_inner(found, "n-samples", task).get("effective"),
            )
            for key, value in values.items()
            for metric, _, filtered in [key.partition(",")]
            if _is_number(value) and filtered and not metric.endswith("_stderr")
        }
        for task, values in found.get("results", {}).items()
    }
    tasks = {task: metrics for task, metrics in tasks.items() if metrics}
    if not tasks:
        raise UserError("lm-eval gave no numbers: its version may be another than this package knows (0.4)")
    return tasks


def require_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        UserError: It is not.
    """
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install 'antidote-llm[lm-eval]'")
    for name in ("lm_eval.tasks", "lm_eval.models.huggingface"):
        _part(name)


def _part(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"lm-eval cannot be imported: {first_line(error)}: reinstall it") from error


def _name(metric: str, filtered: str) -> str:
    return metric if filtered == "none" else f"{metric} ({filtered})"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: float, task: str, metric: str) -> float:
    if not math.isfinite(value):
        raise UserError(f"lm-eval gives {value} for {metric} of {task}: the model gives no finite numbers")
    return float(value)


def _stderr(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _inner(found: Mapping[str, Any], name: str, task: str) -> Mapping[str, Any]:
    inner = found.get(name, {}).get(task, {})
    return inner if isinstance(inner, Mapping) else {}
