"""Help that shows options by group."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from antidote_llm.choices import GROUPS


class GroupedCommand(TyperCommand):
    """Shows its options by group, those that most need first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options of each group."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{title: [] for title in GROUPS.values()}}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            panel = getattr(param, "rich_help_panel", None) or GROUPS["advanced"]
            sections["Arguments" if param.param_type_name == "argument" else panel].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
