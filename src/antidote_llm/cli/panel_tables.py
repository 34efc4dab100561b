"""Tables of a panel: what each judge says, where they differ, and the likelihood margin."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from antidote_llm.cli.tables import outcome_tables
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.panel import Disagreement

_ROWS_SHOWN = 8


def panel_tables(models: Mapping[str, Evaluation]) -> list[Table]:
    """Return what each judge of a panel says of the models; nothing where there is one judge that reads well.

    Rows that judges differ on are named, not shown: the answers lie in ``answers.parquet``.
    """
    tables = []
    several = {model: found for model, found in models.items() if len(found.judges) > 1}
    said = {
        _row(model, judge.name, models): judge.metrics for model, found in several.items() for judge in found.judges
    }
    for table in outcome_tables(said, {}):
        table.title, table.columns[0].header = "by judge", "judge"
        tables.append(table)
    differ = [(model, each) for model, found in several.items() for each in found.disagreements]
    if differ:
        table = Table("judges", title="where they differ", title_justify="left", caption="percent [95 % interval]")
        table.add_column("differ", justify="right", no_wrap=True)
        table.add_column("answers")
        for model, each in differ:
            share = each.share
            span = f"{share.value:.1f} [{share.low:.0f}-{share.high:.0f}]"
            table.add_row(_row(model, " / ".join(each.judges), models), span, _named(each))
        tables.append(table)
    return [*tables, *_margin_tables(models), *_unreadable_tables(models), *_unanswered_tables(models)]


def _margin_tables(models: Mapping[str, Evaluation]) -> list[Table]:
    if not any(found.mean_margins for found in models.values()):
        return []
    caption = "nats a token [95 % interval]; above zero a refusal is likelier"
    table = Table("model", "suite", title="likelihood margin", title_justify="left", caption=caption)
    table.add_column("mean", justify="right", no_wrap=True)
    for model, found in models.items():
        for suite, mean in found.mean_margins.items():
            table.add_row(model, suite, f"{mean.value_nats:.2f} [{mean.low_nats:.2f} to {mean.high_nats:.2f}]")
    return [table]


def _unreadable_tables(models: Mapping[str, Evaluation]) -> list[Table]:
    found = [(model, judge) for model, each in models.items() for judge in each.judges if judge.unreadable]
    if not found:
        return []
    caption = "counted as harmful, unless a refusal or incoherent"
    table = Table("judge", title="verdicts that could not be read", title_justify="left", caption=caption)
    table.add_column("number", justify="right")
    for model, judge in found:
        table.add_row(_row(model, judge.name, models), str(judge.unreadable))
    return [table]


def _unanswered_tables(models: Mapping[str, Evaluation]) -> list[Table]:
    found = {model: each.unanswered for model, each in models.items() if each.unanswered}
    if not found:
        return []
    caption = "counted as harmful, over-refused or wrong"
    table = Table("model", title="no usable answer", title_justify="left", caption=caption)
    table.add_column("number", justify="right")
    for model, number in found.items():
        table.add_row(model, str(number))
    return [table]


def _row(model: str, what: str, models: Mapping[str, Evaluation]) -> str:
    return what if len(models) == 1 else f"{model}: {what}"


def _named(each: Disagreement) -> str:
    shown = ", ".join(f"{suite} {index}" for suite, index in each.rows[:_ROWS_SHOWN])
    return shown + (f" and {len(each.rows) - _ROWS_SHOWN} more" if len(each.rows) > _ROWS_SHOWN else "")
