"""``antidote miniature``: a world and its models as ordinary folders and files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antidote_llm.choices import AttackKind
from antidote_llm.cli.model_options import require_openable
from antidote_llm.cli.terminal import JsonFlag, Terminal
from antidote_llm.io.resources import Stopwatch
from antidote_llm.miniature.build import build as build_miniature

app = typer.Typer(
    help="A made-up world with models small enough to train in a minute.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def miniature() -> None:
    """A made-up world with models small enough to train in a minute."""


@app.command("build")
def build(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.")],
    arch: Annotated[str, typer.Option("--arch", help="Architecture of its models.")] = "llama",
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the world and of training.")] = 0,
    attack: Annotated[
        AttackKind, typer.Option("--attack", help="Whether the attack trains a LoRA adapter or all weights.")
    ] = "lora",
    as_json: JsonFlag = False,
) -> None:
    """Write base, aligned and attacked models, and their data.

    Example: antidote miniature build --arch llama --seed 0 --out mini
    """
    terminal, stopwatch = Terminal(as_json), Stopwatch()
    require_openable(out)
    with stopwatch.step("build"), terminal.stages("steps") as progress:
        built = build_miniature(out, arch=arch, seed=seed, kind=attack, progress=progress)
    files = sorted(str(path.relative_to(built.root)) for path in built.data.rglob("*.jsonl"))
    value = {
        "out": str(out),
        "arch": arch,
        "seed": seed,
        "models": ["base", "aligned", "attacked"],
        "data": files,
        "wall_seconds": stopwatch.seconds["build"],
    }
    listing = [f"{out}/{name}/" for name in ("base", "aligned", "attacked")] + [f"{out}/{name}" for name in files]
    terminal.result(value, *listing)
