"""``antidote miniature``: a world and its models as ordinary folders and files."""

from __future__ import annotations

import typer

from antidote_llm.cli.grouped_help import GroupedCommand
from antidote_llm.cli.options import command_from, json_flag
from antidote_llm.cli.terminal import Terminal, say_loading
from antidote_llm.workflows.specs import MiniatureSpec

app = typer.Typer(
    help="A made-up world with models small enough to train in a minute.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def miniature() -> None:
    """A made-up world with models small enough to train in a minute."""


def _build(spec: MiniatureSpec, *, as_json: bool) -> None:
    """Write base, aligned and attacked models, and their data.

    Example: antidote miniature build --arch llama --seed 0 --out mini
    """
    terminal = Terminal(as_json)
    say_loading(terminal)
    from antidote_llm.workflows.miniature import build_miniature

    value = build_miniature(spec, terminal)
    out = value["out"]
    folders = [f"{out}/{name}/" for name in value["models"]]
    terminal.result(value, *folders, *(f"{out}/{name}" for name in value["data"]))


app.command("build", cls=GroupedCommand)(command_from(MiniatureSpec, _build, (json_flag(),)))
