"""``antidote evaluate``: what a model answers, with intervals."""

from __future__ import annotations

from antidote_llm.cli.options import command_from, json_flag
from antidote_llm.cli.terminal import Terminal, say_loading
from antidote_llm.workflows.specs import EvaluateSpec


def _evaluate(spec: EvaluateSpec, *, as_json: bool) -> None:
    """Measure harm, refusal, over-refusal, coherence and task accuracy, each with its 95 % interval.

    Example: antidote evaluate my-model --adapter my-adapter --harmful harmbench@harmbench.csv --out before
    """
    terminal = Terminal(as_json)
    say_loading(terminal)
    from antidote_llm.cli.result_tables import evaluation_tables
    from antidote_llm.workflows.evaluate import run_evaluation

    result = run_evaluation(spec, terminal)
    terminal.result(result.json_value(), *evaluation_tables(result))


evaluate = command_from(EvaluateSpec, _evaluate, (json_flag(),))
