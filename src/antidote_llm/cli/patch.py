"""``antidote patch``: the patch as a thing of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from antidote_llm.cli.options import GroupedCommand, JsonFlag
from antidote_llm.cli.terminal import Terminal
from antidote_llm.errors import listed
from antidote_llm.patching.diff import diff
from antidote_llm.patching.patch import Patch, read_patch
from antidote_llm.workflows.patch import PatchResult, apply_patch, revert_patch

app = typer.Typer(
    help="Show, apply, revert and compare patches.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

HardLinksOption = Annotated[
    bool, typer.Option("--hard-links", help="Link weight files that do not change instead of copying them.")
]
PatchArgument = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch.safetensors, or the folder of a repair.")]
OntoOption = Annotated[
    str,
    typer.Option("--onto", metavar="REF", help="Folder or Hub id of the checkpoint or adapter; it is not modified."),
]
_UNSEALED = "the patch itself: of format 2, which holds no sha256 of itself: not verified"
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.")]


@app.command("show", cls=GroupedCommand)
def show(patch: PatchArgument, as_json: JsonFlag = False) -> None:
    """Say what a patch changes and what it applies to.

    Example: antidote patch show repaired
    """
    terminal = Terminal(as_json)
    opened = read_patch(patch)
    description = opened.description
    table = Table(
        title=f"{description.recipe.get('method')} on {description.recipe.get('target')}", title_justify="left"
    )
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "kept as", "changed", "share"):
        table.add_column(heading, justify="right" if heading in ("changed", "share") else "left", no_wrap=True)
    for record in description.tensors:
        shape = " x ".join(map(str, record.shape))
        share = f"{100 * record.changed / max(record.entries, 1):.2f} %"
        table.add_row(record.key, shape, record.encoding, f"{record.changed:,}", share)
    lines = []
    for file in description.files:
        lines.append(f"{file.path}  {file.size_bytes:,} bytes")
        lines += [f"  before {file.sha256_before}", f"  after  {file.sha256_after}"]
    same = len(description.unchanged)
    lines.append(f"unchanged: {same} files, which the patch knows by their sha256" if same else "unchanged: unknown")
    lines.append(f"the patch itself: sha256 {opened.sha256}, verified" if opened.sha256 else _UNSEALED)
    terminal.result({**description.model_dump(mode="json"), "sha256": opened.sha256}, table, *lines)


@app.command("apply", cls=GroupedCommand)
def apply(
    patch: PatchArgument,
    onto: OntoOption,
    out: OutOption,
    hard_links: HardLinksOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a copy of a checkpoint with a patch put on.

    Example: antidote patch apply repaired --onto my-adapter --out patched
    """
    terminal = Terminal(as_json)
    _give(terminal, apply_patch(patch, onto, out, hard_links=hard_links, reporter=terminal))


@app.command("revert", cls=GroupedCommand)
def revert(
    patch: PatchArgument,
    onto: OntoOption,
    out: OutOption,
    hard_links: HardLinksOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a copy of a repaired checkpoint with the patch taken off: the original bytes.

    Example: antidote patch revert repaired --onto repaired/model --out original
    """
    terminal = Terminal(as_json)
    _give(terminal, revert_patch(patch, onto, out, hard_links=hard_links, reporter=terminal))


def _give(terminal: Terminal, result: PatchResult) -> None:
    lines = [str(result.out), *(f"  {name}  sha256 {value}" for name, value in result.files.items())]
    if result.left_out:
        lines.append(f"left out, because no class loads it: {listed(result.left_out)}")
    terminal.result(result.json_value(), *lines, result.verified)


@app.command("diff", cls=GroupedCommand)
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="A patch.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another patch of the same checkpoint.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what two patches of the same checkpoint share.

    Example: antidote patch diff repaired-by-antidote repaired-by-random
    """
    terminal = Terminal(as_json)
    patches: list[Patch] = [read_patch(first), read_patch(second)]
    found = diff(*patches)
    table = Table(title="entries that change", title_justify="left")
    table.add_column("tensor", overflow="fold")
    for heading in ("first only", "both", "to the same value", "second only", "Jaccard"):
        table.add_column(heading, justify="right", no_wrap=True)
    columns = ("first_only", "both", "equal", "second_only")
    totals = [sum(getattr(row, name) for row in found) for name in columns]
    for row in found:
        table.add_row(row.key, *(f"{getattr(row, name):,}" for name in columns), f"{row.jaccard:.3f}")
    either = totals[0] + totals[1] + totals[3]
    overall = totals[1] / either if either else 1.0
    table.add_row("all", *(f"{n:,}" for n in totals), f"{overall:.3f}", style="bold")
    tensors = [{**asdict(row), "jaccard": row.jaccard} for row in found]
    value = {**dict(zip(columns, totals, strict=True)), "jaccard": overall, "tensors": tensors}
    terminal.result(value, table)
