"""The table of a comparison."""

from __future__ import annotations

from rich.table import Table

from antidote_llm.decision.compare import Comparison
from antidote_llm.evaluation.metrics import Estimate


def comparison_table(found: Comparison) -> Table:
    """Return every metric before and after, with the paired difference, and the gain kept of each task."""
    table = Table("measure", title="before and after", title_justify="left", caption="percent [95 % interval]")
    for heading in ("before", "after", "difference", "gain kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    for metric, change in found.changes.items():
        gain = found.gain_kept.get(metric.removeprefix("tasks."))
        kept = "" if gain is None else _span(gain.estimate) if gain.estimate else str(gain.reason)
        table.add_row(metric, _span(change.before), _span(change.after), _span(change.difference), kept)
    return table


def _span(estimate: Estimate) -> str:
    return f"{estimate.value:.1f} [{estimate.low:.1f} to {estimate.high:.1f}]"
