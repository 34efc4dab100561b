"""Compares two evaluations of the same prompts: the paired verdict."""

from __future__ import annotations

from pathlib import Path

from antidote_llm.decision.compare import Comparison, compare
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.workflows.specs import CompareSpec


def run_comparison(spec: CompareSpec) -> Comparison:
    """Compare the evaluations that lie in two folders.

    Raises:
        UserError: A folder holds no evaluation, or the evaluations differ in prompts, judge or settings.
    """
    before, after = Evaluation.read(Path(spec.before)), Evaluation.read(Path(spec.after))
    return compare(before, after, Evaluation.read(Path(spec.aligned)) if spec.aligned else None)
