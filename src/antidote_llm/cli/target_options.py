"""Options that say what a repair edits, and the list of what that comes to."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.table import Table

from antidote_llm.cli.tables import tensors
from antidote_llm.cli.terminal import Terminal
from antidote_llm.models.target import Target

AlignedOption = Annotated[
    str | None,
    typer.Option(
        "--aligned", metavar="REF", help="Folder or Hub id of the aligned model that a full fine-tune started from."
    ),
]
TargetOption = Annotated[
    Literal["auto", "adapter", "delta", "weight"],
    typer.Option(
        "--target",
        help="What is edited: an adapter's factors; the delta from --aligned; or bare weights, which become zero. "
        "auto is the adapter where there is one, else the delta.",
    ),
]
SitesOption = Annotated[
    str,
    typer.Option(
        "--sites",
        metavar="PATTERN",
        help="Which matrices: all, attention, mlp, qkv, names and patterns, parted by commas, as in "
        "attention,down_proj or '*.layers.3.*'.",
    ),
]
RestoreOutsideOption = Annotated[
    bool,
    typer.Option(
        "--restore-outside",
        help="Put whatever else the fine-tune moved (embeddings, norms, biases, head, other matrices) back to the "
        "aligned model.",
    ),
]
ListSitesOption = Annotated[
    bool, typer.Option("--list-sites", help="Print the matrices that would be edited, and do nothing.")
]


def warn(terminal: Terminal, target: Target, restore_outside: bool) -> None:
    """Say what the user should know about a target."""
    if target.name == "weight":
        terminal.warn(
            "zeroing pre-trained weights costs far more than going back to an aligned model: pass --aligned where "
            "there is one"
        )
    if target.name == "adapter" and target.outside and not restore_outside:
        more = " …" if len(target.outside) > 1 else ""
        terminal.warn(
            "the adapter also holds what is not edited "
            f"({tensors(len(target.outside))}: {target.outside[0].key}{more}): "
            "it stays as it is unless --restore-outside is given"
        )


def show(terminal: Terminal, target: Target) -> None:
    """Print the resolved list of sites."""
    table = Table(title=f"{len(target.sites)} matrices of the {target.name}", title_justify="left")
    table.add_column("matrix", overflow="fold")
    for heading in ("rows", "columns"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    for site in target.sites:
        table.add_row(site.name, str(site.shape[0]), str(site.shape[1]), site.file)
    entries = sum(site.shape[0] * site.shape[1] for site in target.sites)
    value = {
        "target": target.name,
        "checkpoint": target.checkpoint.reference,
        "entries": entries,
        "sites": [
            {"name": s.name, "module": s.module, "role": s.role, "layer": s.layer, "file": s.file, "key": s.key}
            | {"rows": s.shape[0], "columns": s.shape[1], "part": s.part, "expert": s.expert}
            for s in target.sites
        ],
        "outside": [tensor.key for tensor in target.outside],
    }
    terminal.result(value, table, f"{entries:,} entries; {tensors(len(target.outside))} outside them")
