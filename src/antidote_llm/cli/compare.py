"""``antidote compare``: the paired verdict between two evaluations."""

from __future__ import annotations

from antidote_llm.cli.options import command_from, json_flag
from antidote_llm.cli.terminal import Terminal
from antidote_llm.workflows.specs import CompareSpec

NEGATIVE = 1


def _compare(spec: CompareSpec, *, as_json: bool) -> int:
    """Compare two evaluations of the same prompts; exit code 1 says that the verdict is bad.

    Example: antidote compare before after --aligned aligned
    """
    from antidote_llm.cli.comparison_table import comparison_table
    from antidote_llm.workflows.compare import run_comparison

    terminal = Terminal(as_json)
    found = run_comparison(spec)
    terminal.result(found.model_dump(mode="json"), comparison_table(found), found.verdict.sentence)
    return NEGATIVE if found.verdict.kind == "bad" else 0


compare = command_from(CompareSpec, _compare, (json_flag(),))
