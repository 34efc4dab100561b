"""Builds the miniature: its models and data as ordinary folders and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from antidote_llm.io.resources import Stopwatch
from antidote_llm.miniature.build import build
from antidote_llm.workflows.opening import require_openable
from antidote_llm.workflows.reporter import Reporter
from antidote_llm.workflows.specs import MiniatureSpec

MODELS = ("base", "aligned", "attacked")


def build_miniature(spec: MiniatureSpec, reporter: Reporter) -> dict[str, Any]:
    """Build the miniature, and return what was written, as JSON values.

    Raises:
        UserError: The architecture is unknown, or nothing can be written.
    """
    out, stopwatch = Path(spec.out), Stopwatch()
    require_openable(out)
    with stopwatch.step("build"), reporter.stages("steps") as progress:
        built = build(out, arch=spec.arch, seed=spec.seed, kind=spec.attack, progress=progress)
    return {
        "out": str(out),
        "arch": spec.arch,
        "seed": spec.seed,
        "models": list(MODELS),
        "data": sorted(str(path.relative_to(built.root)) for path in built.data.rglob("*.jsonl")),
        "wall_seconds": stopwatch.seconds["build"],
    }
