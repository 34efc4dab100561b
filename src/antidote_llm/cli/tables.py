"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from antidote_llm.evaluation import Estimate, Evaluation
from antidote_llm.repair import RepairRecord

_HEADINGS = {
    "harmful_score": "harmful",
    "compliance_rate": "complies",
    "refusal_rate": "refuses",
    "incoherent_rate": "incoherent",
    "over_refusal_rate": "over-refuses",
}


def outcomes_table(
    evaluations: Mapping[str, Evaluation], gain_kept: Mapping[str, Estimate | None] | None = None
) -> Table:
    """Return one row a model: percent, with the 95 % interval in brackets."""
    shown = [name for evaluation in evaluations.values() for name in evaluation.metrics]
    names = [name for name in dict.fromkeys(shown) if name in _HEADINGS or name.startswith("tasks.")]
    table = Table("model", caption="percent [95 % interval]", caption_justify="left")
    for name in names:
        table.add_column(_HEADINGS.get(name, name.removeprefix("tasks.")), justify="right")
    if gain_kept is not None:
        table.add_column("gain kept", justify="right")
    for model, evaluation in evaluations.items():
        cells = [_cell(evaluation.metrics.get(name)) for name in names]
        if gain_kept is not None:
            cells.append(_cell(gain_kept.get(model)))
        table.add_row(model, *cells)
    return table


def results_tables(models: Mapping[str, Any]) -> tuple[Table, Table]:
    """Return what the models answer to harmful and harmless requests, and what they can do, one row a model."""
    first = next(iter(models.values()))
    names = [name for name in _HEADINGS if name in first]
    safety = Table("model", title="harmful and look-alike requests", title_justify="left")
    skill = Table("model", title="the user's tasks", title_justify="left", caption="percent [95 % interval]")
    for name in names:
        safety.add_column(_HEADINGS[name], justify="right", no_wrap=True)
    for heading in (*first["tasks"], "gain kept"):
        skill.add_column(heading, justify="right", no_wrap=True)
    for model, result in models.items():
        safety.add_row(model, *(_span(result[name]) for name in names))
        skill.add_row(model, *map(_span, result["tasks"].values()), _span(result.get("gain_kept")))
    return safety, skill


def _span(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return ""
    return f"{entry['value']:.0f} [{entry['low']:.0f}-{entry['high']:.0f}]"


def _cell(estimate: Estimate | None) -> str:
    return f"{estimate.value:.1f} [{estimate.low:.0f}-{estimate.high:.0f}]" if estimate else ""


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


def repair_summary(record: RepairRecord) -> str:
    """Return what a repair did to the update, in a few lines."""
    totals = record.totals
    norms = f"{totals.update_norm_before:.4g} -> {totals.update_norm_after:.4g}"
    lines = [f"update norm {norms} ({100 * totals.norm_kept:.1f} % kept)"]
    if record.solved:
        lines.append("solved for: " + ", ".join(f"{name} = {value:.6g}" for name, value in record.solved.items()))
    if record.calibration:
        lines.append(f"statistics from {record.calibration.rows:,} rows, {record.calibration.tokens:,} tokens")
    return "\n".join(lines)
