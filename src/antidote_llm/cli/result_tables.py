"""What each workflow came to, for the terminal."""

from __future__ import annotations

import math
import shlex
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from antidote_llm.cli.panel_tables import panel_tables
from antidote_llm.cli.tables import outcome_tables, utility_tables
from antidote_llm.errors import listed
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.models.target import Target
from antidote_llm.repairs.record import CalibrationData, RepairRecord
from antidote_llm.training.record import TrainingRecord
from antidote_llm.workflows.demo import DemoResult
from antidote_llm.workflows.evaluate import EvaluateResult
from antidote_llm.workflows.opening import tensors
from antidote_llm.workflows.recipe import RecipeResult
from antidote_llm.workflows.recipe_steps import ATTACKED, REPAIRED
from antidote_llm.workflows.repair import RepairResult, patch_size


def counts_table(record: RepairRecord) -> Table:
    """Return what a repair changes, one row a module kind and role, and the whole."""
    table = Table(title=f"{record.method} on the {record.target}", title_justify="left")
    table.add_column("matrices")
    for heading in ("number", "entries", "chosen", "change", "share"):
        table.add_column(heading, justify="right")
    groups: dict[str, list[tuple[int, int, int]]] = {}
    for site in record.sites:
        name = f"{site.module.rsplit('.', 1)[-1]} {site.role}"
        groups.setdefault(name, []).append((site.rows * site.columns, site.chosen or 0, site.changed))
    groups["all"] = [entry for entries in list(groups.values()) for entry in entries]
    for name, entries in groups.items():
        total, chosen, changed = (sum(column) for column in zip(*entries, strict=True))
        picked = f"{chosen:,}" if record.totals.chosen is not None else "-"
        share = f"{100 * changed / total:.2f} %" if total else "-"
        table.add_row(
            name, str(len(entries)), f"{total:,}", picked, f"{changed:,}", share, style="bold" if name == "all" else ""
        )
    return table


def repair_summary(record: RepairRecord) -> list[str]:
    """Return what a repair did to the update, in a few lines."""
    totals = record.totals
    norms = f"{totals.update_norm_before:.4g} -> {totals.update_norm_after:.4g}"
    measured = "norm of the edited weights" if record.target == "weight" else "update norm"
    lines = [f"{measured} {norms} ({100 * totals.norm_kept:.1f} % kept)"]
    if record.outside:
        lines.append(_outside_line(record))
    if record.solved:
        lines.append("solved for: " + ", ".join(f"{name} = {value:.6g}" for name, value in record.solved.items()))
    if record.calibration:
        lines.append(_statistics(record.calibration))
    if record.left_out:
        lines.append(f"left out of the repaired model, because no class loads it: {listed(record.left_out)}")
    return lines


def _outside_line(record: RepairRecord) -> str:
    before, after = (
        math.hypot(*(getattr(part, name) for part in record.outside)) for name in ("norm_before", "norm_after")
    )
    whole = math.hypot(before, record.totals.update_norm_before)
    number = sum(part.tensors for part in record.outside)
    fate = "put back to the aligned model" if after < before else "left as it is"
    share = 100 * (before / whole) ** 2 if whole else 0.0
    return f"outside these matrices: {tensors(number)}, update norm {before:.4g} ({share:.1f} % of the square), {fate}"


def _statistics(calibration: CalibrationData) -> str:
    line = f"statistics from {calibration.rows:,} rows, {calibration.tokens:,} tokens"
    if calibration.of_rows is None or calibration.agreement_bound is None:
        return line
    return (
        f"{line}, of {calibration.of_rows:,} rows: with 95 % confidence the mask agrees with that of all rows to at "
        f"least {calibration.agreement_bound:.3f} (Jaccard)"
    )


def evaluation_tables(result: EvaluateResult) -> list[RenderableType]:
    """Return what a model answers, as it was asked and under each condition."""
    asked, name = result.evaluation, result.name
    tables: list[RenderableType] = [
        *outcome_tables({name: asked.metrics}, {}),
        *panel_tables({name: asked}),
        *utility_tables({name: asked}),
    ]
    if result.conditions:
        for table in outcome_tables({key: found.metrics for key, found in result.conditions.items()}, {}):
            table.title, table.columns[0].header = "harmful requests again, by condition", "condition"
            tables.append(table)
    return tables


def recipe_tables(result: RecipeResult) -> list[RenderableType]:
    """Return what the models of a recipe answer, and what the repair came to."""
    comparison = result.comparison
    metrics = {name: evaluation.metrics for name, evaluation in result.evaluations.items()}
    kept: dict[str, Estimate | None] = {}
    if comparison is not None and len(comparison.gain_kept) == 1:
        (gain,) = comparison.gain_kept.values()
        kept = {ATTACKED: None, REPAIRED: gain.estimate}
    verdict = [] if comparison is None else [comparison.verdict.sentence]
    return [*outcome_tables(metrics, kept), *verdict, f"results: {result.out}/results.json"]


def demo_tables(result: DemoResult) -> list[RenderableType]:
    """Return what the demo's models answer, and what the repair came to."""
    models = result.value["models"]
    metrics: dict[str, dict[str, Estimate]] = {}
    kept: dict[str, Estimate | None] = {}
    for name, model in models.items():
        tasks = {f"tasks.{task}": entry for task, entry in model["tasks"].items()}
        rates = {key: entry for key, entry in model.items() if key not in ("tasks", "gain_kept")}
        metrics[name] = {key: Estimate(**entry) for key, entry in {**rates, **tasks}.items()}
        gain = model.get("gain_kept", {"value": None})
        kept[name] = None if gain["value"] is None else Estimate(**{k: gain[k] for k in ("value", "low", "high", "n")})
    return [*outcome_tables(metrics, kept), result.value["verdict"], f"report: {result.out}/report.html"]


def training_table(record: TrainingRecord) -> Table:
    """Return what was trained, in a row."""
    table = Table("stage", "defense", "rows", "steps", "first loss", "last loss", "seconds")
    table.add_row(
        record.stage,
        record.defense,
        f"{record.data.rows:,}",
        f"{record.steps:,}",
        f"{record.first_loss:.4f}",
        f"{record.last_loss:.4f}",
        f"{record.wall_seconds['train']:.1f}",
    )
    return table


def repair_tables(result: RepairResult) -> list[RenderableType]:
    """Return what a repair changed, what the models answer, and what it comes to."""
    shown: list[RenderableType] = [counts_table(result.record), *repair_summary(result.record)]
    if result.out is None:
        return [*shown, patch_size(result.patch_bytes_at_most or 0)]
    if result.evaluations:
        metrics = {name: evaluation.metrics for name, evaluation in result.evaluations.items()}
        shown += [*outcome_tables(metrics, {}), *panel_tables(result.evaluations)]
    if not (result.out / "model").is_dir():
        repaired = result.record.adapter or result.record.base
        apply = ["antidote", "patch", "apply", str(result.out), "--onto", repaired.reference, "--out", "DIR"]
        shown.append(f"the repaired model: {shlex.join(apply)}")
    return [*shown, result.verdict.sentence, f"report: {result.out}/record/report.html"]


def target_value(target: Target) -> dict[str, Any]:
    """Return what a repair would edit, as JSON values."""
    return {
        "target": target.name,
        "checkpoint": target.checkpoint.reference,
        "entries": _entries(target),
        "sites": [
            {"name": s.name, "module": s.module, "role": s.role, "layer": s.layer, "file": s.file, "key": s.key}
            | {"rows": s.shape[0], "columns": s.shape[1], "part": s.part, "expert": s.expert}
            for s in target.sites
        ],
        "outside": [tensor.key for tensor in target.outside],
    }


def target_tables(target: Target) -> list[RenderableType]:
    """Return the matrices that a repair would edit."""
    table = Table(title=f"{len(target.sites)} matrices of the {target.name}", title_justify="left")
    table.add_column("matrix", overflow="fold")
    for heading in ("rows", "columns"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    for site in target.sites:
        table.add_row(site.name, str(site.shape[0]), str(site.shape[1]), site.file)
    return [table, f"{_entries(target):,} entries; {tensors(len(target.outside))} outside them"]


def _entries(target: Target) -> int:
    return sum(site.shape[0] * site.shape[1] for site in target.sites)
