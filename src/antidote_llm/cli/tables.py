"""Tables of what models answer, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.metrics import Estimate

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
