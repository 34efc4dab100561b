"""``antidote patch``: the patch as a thing of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from antidote_llm.choices import GROUPS
from antidote_llm.cli.grouped_help import GroupedCommand
from antidote_llm.cli.options import JsonFlag
from antidote_llm.cli.terminal import Terminal
from antidote_llm.errors import listed
from antidote_llm.patching.description import TensorRecord
from antidote_llm.patching.diff import TensorDiff, diff
from antidote_llm.patching.patch import Patch, read_patch
from antidote_llm.workflows.patch import PatchResult, apply_patch, revert_patch

app = typer.Typer(
    help="Show, apply, revert and compare patches.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

HardLinksOption = Annotated[
    bool,
    typer.Option(
        "--hard-links",
        help="Link weight files that do not change instead of copying them.",
        rich_help_panel=GROUPS["resources"],
    ),
]
TensorsFlag = Annotated[
    bool,
    typer.Option("--tensors", help="Every tensor by its name, in the place of layers.", rich_help_panel=GROUPS["main"]),
]
PatchArgument = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch.safetensors, or the folder of a repair.")]
OntoOption = Annotated[
    str,
    typer.Option(
        "--onto",
        metavar="REF",
        help="Folder or Hub id of the checkpoint or adapter; it is not modified.",
        rich_help_panel=GROUPS["main"],
    ),
]
T = TypeVar("T")
_COLUMNS = ("first_only", "both", "equal", "second_only")
# The number of a decoder layer in a tensor's name: transformers calls their list layers, h or blocks.
_LAYER = re.compile(r"\.(?:layers|h|blocks?)\.(\d+)\.")
_UNSEALED = "the patch itself: of format 2, which holds no sha256 of itself: not verified"
OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Where the result goes.", rich_help_panel=GROUPS["main"])
]


@app.command("show", cls=GroupedCommand)
def show(patch: PatchArgument, tensors: TensorsFlag = False, as_json: JsonFlag = False) -> None:
    """Say what a patch changes and what it applies to, by layer.

    Example: antidote patch show repaired --tensors
    """
    terminal = Terminal(as_json)
    opened = read_patch(patch)
    description = opened.description
    title = f"{description.recipe.get('method')} on {description.recipe.get('target')}"
    table = _tensors_table(title, description.tensors) if tensors else _layers_table(title, description.tensors)
    lines = []
    for file in description.files:
        lines.append(f"{file.path}  {file.size_bytes:,} bytes")
        lines += [f"  before {file.sha256_before}", f"  after  {file.sha256_after}"]
    same = len(description.unchanged)
    lines.append(f"unchanged: {same} files, which the patch knows by their sha256" if same else "unchanged: unknown")
    lines.append(f"the patch itself: sha256 {opened.sha256}, verified" if opened.sha256 else _UNSEALED)
    terminal.result({**description.model_dump(mode="json"), "sha256": opened.sha256}, table, *lines)


def _tensors_table(title: str, records: Sequence[TensorRecord]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "kept as", "changed", "share"):
        table.add_column(heading, justify="right" if heading in ("changed", "share") else "left", no_wrap=True)
    for record in records:
        shape = " x ".join(map(str, record.shape))
        table.add_row(record.key, shape, record.encoding, f"{record.changed:,}", _share(record.changed, record.entries))
    return table


def _layers_table(title: str, records: Sequence[TensorRecord]) -> Table:
    table = Table("layer", title=title, title_justify="left")
    for heading in ("tensors", "entries", "changed", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = _by_layer(records, lambda record: record.key)
    for name, held in {**groups, "all": list(records)}.items():
        entries, changed = sum(record.entries for record in held), sum(record.changed for record in held)
        style = "bold" if name == "all" else ""
        table.add_row(name, f"{len(held):,}", f"{entries:,}", f"{changed:,}", _share(changed, entries), style=style)
    return table


def _by_layer(items: Sequence[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Return tensors by their decoder layer, in order, those of no layer at the end."""
    groups: dict[int | None, list[T]] = {}
    for item in items:
        found = _LAYER.search(key(item))
        groups.setdefault(int(found[1]) if found else None, []).append(item)
    layers = sorted(number for number in groups if number is not None)
    named = {str(number): groups[number] for number in layers}
    return {**named, "outside layers": groups[None]} if None in groups else named


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.2f} %"


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
    tensors: TensorsFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what two patches of the same checkpoint share.

    Example: antidote patch diff repaired-by-antidote repaired-by-random
    """
    terminal = Terminal(as_json)
    patches: list[Patch] = [read_patch(first), read_patch(second)]
    found = diff(*patches)
    table = Table("tensor" if tensors else "layer", title="entries that change", title_justify="left")
    for heading in ("first only", "both", "to the same value", "second only", "Jaccard"):
        table.add_column(heading, justify="right", no_wrap=True)
    groups = {row.key: [row] for row in found} if tensors else _by_layer(found, lambda row: row.key)
    for name, rows in groups.items():
        table.add_row(name, *_counts(rows))
    table.add_row("all", *_counts(found), style="bold")
    totals = {name: sum(getattr(row, name) for row in found) for name in _COLUMNS}
    value = {
        **totals,
        "jaccard": _jaccard(found),
        "tensors": [{**asdict(row), "jaccard": row.jaccard} for row in found],
    }
    terminal.result(value, table)


def _counts(rows: Sequence[TensorDiff]) -> list[str]:
    return [*(f"{sum(getattr(row, name) for row in rows):,}" for name in _COLUMNS), f"{_jaccard(rows):.3f}"]


def _jaccard(rows: Sequence[TensorDiff]) -> float:
    """Return the share of what either patch changes that both change; 1 where neither changes anything."""
    both = sum(row.both for row in rows)
    either = both + sum(row.first_only + row.second_only for row in rows)
    return both / either if either else 1.0
