"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table

from antidote_llm.errors import listed
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.repairs.record import CalibrationData, RepairRecord

_HEADINGS = {
    "harmful_score": "harmful",
    "compliance_rate": "complies",
    "refusal_rate": "refuses",
    "incoherent_rate": "incoherent",
    "over_refusal_rate": "over-refuses",
    "affirmative_preferred_rate": "prefers to comply",
    "harmless_refusal_preferred_rate": "prefers to over-refuse",
}
_OF_HARMLESS = ("over_refusal_rate", "harmless_refusal_preferred_rate")


def outcome_tables(
    models: Mapping[str, Mapping[str, Estimate]], gain_kept: Mapping[str, Estimate | None]
) -> list[Table]:
    """Return what the models answer to harmful and harmless requests, and what they can do at the user's tasks.

    Args:
        models: The metrics of each model, one row each.
        gain_kept: Of a fine-tune's gain, by model; None where it cannot be told.
    """
    present = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    asked = [name for name in _HEADINGS if name in present]
    kinds = [
        kind
        for kind in ("harmful", "harmless")
        if any((name in _OF_HARMLESS) == (kind == "harmless") for name in asked)
    ]
    groups = {
        f"{' and '.join(kinds)} requests": asked,
        "the user's tasks": [name for name in present if name.startswith("tasks.")],
    }
    tables = []
    for title, names in groups.items():
        if not names:
            continue
        with_gain = bool(gain_kept) and title == "the user's tasks"
        table = Table("model", title=title, title_justify="left", caption="percent [95 % interval]")
        for name in names:
            table.add_column(_HEADINGS.get(name, name.removeprefix("tasks.")), justify="right", no_wrap=True)
        if with_gain:
            table.add_column("gain kept", justify="right", no_wrap=True)
        for model, metrics in models.items():
            cells = [_span(metrics.get(name)) for name in names]
            table.add_row(model, *cells, *([_span(gain_kept.get(model))] if with_gain else []))
        tables.append(table)
    return tables


def utility_tables(models: Mapping[str, Evaluation]) -> list[Table]:
    """Return the perplexity of the models, and what lm-eval says of them, each with its unit."""
    tables = []
    if any(found.perplexity for found in models.values()):
        table = Table("model", title="perplexity", title_justify="left", caption="exp(nats a token) [95 % interval]")
        for heading in ("perplexity", "tokens", "window", "stride"):
            table.add_column(heading, justify="right", no_wrap=True)
        for model, found in models.items():
            if (one := found.perplexity) is not None:
                span = f"{one.value:.4g} [{one.low:.4g}-{one.high:.4g}]"
                table.add_row(model, span, f"{one.tokens:,}", f"{one.window:,}", f"{one.stride:,}")
        tables.append(table)
    if any(found.lm_eval for found in models.values()):
        table = Table("model", "task", "metric", title="lm-eval", title_justify="left", caption="as lm-eval gives it")
        table.add_column("value", justify="right", no_wrap=True)
        for model, found in models.items():
            for task, metrics in found.lm_eval.items():
                for name, metric in metrics.items():
                    error = "" if metric.stderr is None else f" \N{PLUS-MINUS SIGN} {metric.stderr:.4g}"
                    table.add_row(model, task, name, f"{metric.value:.4g}{error}")
        tables.append(table)
    return tables


def _span(estimate: Estimate | None) -> str:
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


def tensors(number: int) -> str:
    """Return a number of tensors in words."""
    return f"{number:,} tensor{'s' if number != 1 else ''}"


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
