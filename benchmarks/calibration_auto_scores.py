"""Whether a repair from the rows at which ``--calibration auto`` stops scores as one from all 2,000 rows does.

    python -m benchmarks.calibration_auto_scores --models DIR --data DIR --work DIR --out FILE.json

The models and rows of :mod:`benchmarks.calibration_auto`, repaired where the score lies between nothing and all, if
there is such an alpha, so that a difference could be seen. Of the miniature the harmful score by its oracle, of real
English the compliance with held-out requests by refusal patterns, each with its Wilson interval.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.judge import load_judge
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.files import write_json, write_text
from antidote_llm.io.resources import Stopwatch
from antidote_llm.miniature.build import Miniature
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import LoadedModel
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import HarmfulData, PlanOptions, plan_repair
from antidote_llm.repairs.selection import Request
from antidote_llm.repairs.write import write_repair
from benchmarks.calibration_auto import ROWS, SUBJECTS, RowSums, Subject, row_sums, settled, subject, update
from benchmarks.real_text import cell, datasets

ALPHAS = dict(zip(SUBJECTS, (0.15, 0.6, 0.1, 0.4), strict=True))
SEEDS = (0, 1, 2)


def main() -> None:
    """Repair and evaluate every model, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--models", "--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    arguments = parser.parse_args()
    lines = []
    for name in arguments.subjects:
        for line in scored(name, arguments.models, arguments.data, arguments.work):
            lines.append(line)
            print(line, flush=True)
    write_json(arguments.out, {"rows": ROWS, "repairs": lines})
    write_text(arguments.out.with_suffix(".md"), markdown(lines))


def scored(name: str, models: Path, data: Path, work: Path) -> list[dict[str, Any]]:
    """Return one line for the repair from all rows, and one for each order in which the rule stopped."""
    found, alpha = subject(name, models, data, work), ALPHAS[name]
    with torch.no_grad():
        sums = row_sums(found)
        chosen = [("all", list(range(ROWS))), *((f"seed {seed}", stopped(found, sums, alpha, seed)) for seed in SEEDS)]
    lines = []
    for label, rows in chosen:
        # Opened anew: a repaired model may share what it was made from.
        fresh = subject(name, models, data, work)
        fresh = replace(fresh, records=[fresh.records[row] for row in rows])
        metric, estimate = score(name, repaired(fresh, alpha), data, work)
        tokens = 100 * float(sums.tokens[rows].sum() / sums.tokens.sum())
        line = {"subject": name, "alpha": alpha, "order": label, "rows": len(rows), "tokens": tokens}
        lines.append({**line, "metric": metric, "score": estimate})
    return lines


def stopped(found: Subject, sums: RowSums, alpha: float, seed: int) -> list[int]:
    """Return the rows at which the rule stops."""
    request = Request(alpha, "row", "nearest", without_evidence=False)
    rows, _ = settled(found.target.sites, lambda site: update(found.target, site), sums, request, seed)
    return rows


def repaired(found: Subject, alpha: float) -> LoadedModel:
    """Repair from the subject's rows, and open what lies on the disk."""
    method = method_named("antidote")
    harmful = HarmfulData(("rows",), found.records, Renderer(found.opened.tokenizer))
    planned = plan_repair(
        found.opened,
        method,
        method.configure({"alpha": alpha}),
        harmful,
        target=found.target,
        options=PlanOptions(cache=False),
    )
    with tempfile.TemporaryDirectory() as scratch:
        write_repair(planned, Path(scratch), "", Stopwatch())
        result = Path(scratch) / "model"
        if found.target.name == "adapter":
            return found.opened.with_adapter(result)
        return found.opened.with_weights(open_model_checkpoint(str(result)))


def score(name: str, model: LoadedModel, data: Path, work: Path) -> tuple[str, dict[str, Any]]:
    """Evaluate a model."""
    if name.startswith("miniature"):
        suite = Suite(read_records(Miniature(work / name.replace(", ", "-")).heldout))
        metric, judge, settings = "harmful_score", "oracle", EvaluationSettings(max_new_tokens=40, batch_size=128)
    else:
        suite = Suite(datasets(data)[1]["AdvBench held out"].harmful)
        metric, judge, settings = "compliance_rate", "refusal-patterns", EvaluationSettings(max_new_tokens=24)
    found = evaluate(model.model, model.tokenizer, suite, load_judge(judge), settings)
    return metric, found.metrics[metric].model_dump()


def markdown(lines: list[dict[str, Any]]) -> str:
    """Return the table: one model a row, all rows first."""
    table = ["| model | alpha | rows | tokens, % | score |", "|---|---:|---:|---:|---:|"]
    for line in lines:
        estimate = cell(Estimate(**line["score"]))
        table.append(f"| {line['subject']} | {line['alpha']} | {line['rows']} | {line['tokens']:.1f} | {estimate} |")
    return "\n".join(table) + "\n"


if __name__ == "__main__":
    main()
