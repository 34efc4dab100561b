"""Compares two evaluations of the same prompts: the paired verdict."""

from __future__ import annotations

from pathlib import Path

from antidote_llm.decision.compare import Comparison, compare
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.workflows.specs import CompareSpec


def run_comparison(spec: CompareSpec) -> Comparison:
    """Compare the evaluations that are in the folders of a spec.

    Raises:
        UserError: A folder holds no evaluation, or the evaluations differ in prompts, judge or settings.
    """
    return compare_evaluations(spec.before, spec.after, spec.aligned)


def compare_evaluations(
    before: str | Path | Evaluation, after: str | Path | Evaluation, aligned: str | Path | Evaluation | None = None
) -> Comparison:
    """Compare evaluations, or those in folders.

    Raises:
        UserError: A folder holds no evaluation, or the evaluations differ in prompts, judge or settings.
    """
    return compare(_read(before), _read(after), None if aligned is None else _read(aligned))


def _read(found: str | Path | Evaluation) -> Evaluation:
    return found if isinstance(found, Evaluation) else Evaluation.read(Path(found))
