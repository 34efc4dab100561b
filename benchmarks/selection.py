"""What selection costs beside a sort, and what ten selections cost beside one.

    python -m benchmarks.selection --work runs/bench/models --out runs/bench/selection.json

Rows of a matrix of scores against a sort of its rows, and against the stable sort and scatter of the published code;
whole matrices against one flat sort. Then scoring a model with one alpha, masks of every matrix included, against ten
alphas of the same scope. All of a part take turns in one process; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from antidote_llm.calibration.collect import collect
from antidote_llm.io.files import write_json, write_text
from antidote_llm.models.sites import Site
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.edits import Problem, edits_of, plans
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.selection import Request, select, top_entries
from benchmarks.interleaved import Check, Work, checks_table, load_average, medians, ratio, timed
from benchmarks.random_llama import SHAPES, opened, random_rows, write_checkpoint

ALPHAS = (0.01, 0.05, 0.1, 0.2, 0.5)
SWEPT = [{"alpha": round(0.05 * step, 2), "scope": "global"} for step in range(1, 11)]
BLOCK_ROWS = 256
SMALL_REPEATS = 3
MOST_OF_A_SORT, MOST_OF_ONE = 0.2, 1.2


def main() -> None:
    """Time selection with every number of threads, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps the models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({torch.get_num_threads(), 1}, reverse=True))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="smaller matrices, the smaller model, all threads only")
    arguments = parser.parse_args()
    repeats = SMALL_REPEATS if arguments.small else arguments.repeats
    side, size = (1024, "1M") if arguments.small else (4096, "27M")
    cases: list[dict[str, Any]] = []
    checks: list[Check] = []
    for threads in arguments.threads[:1] if arguments.small else arguments.threads:
        torch.set_num_threads(threads)
        for found, held in (
            against_sorts(side, repeats),
            against_one(size, arguments.work / size, repeats),
        ):
            cases.append({"threads": threads, "load": load_average(), **found})
            checks += held
    write_json(arguments.out, {"cases": cases, "checks": [check.as_json() for check in checks]})
    text = checks_table(checks)
    write_text(arguments.out.with_suffix(".md"), text)
    print(text)


def against_sorts(side: int, repeats: int) -> tuple[dict[str, Any], list[Check]]:
    """Time the masks of one square matrix of scores."""
    scores_OI = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).abs()
    site = Site("m", "m", "weight", "f", "m", (side, side), 1.0, (nn.Identity(),))
    blocks = torch.split(scores_OI, BLOCK_ROWS)

    def rows(alpha: float) -> None:
        for block in blocks:
            top_entries(block, round(alpha * side))

    def whole(alpha: float) -> None:
        mask = select([site], lambda _: blocks, Request(alpha, "matrix", "nearest", True)).mask_by_rows(site)
        for block in blocks:
            mask.next_rows(block)

    works = {
        "sort of the rows": Work(lambda: torch.sort(scores_OI, dim=-1)),
        "stable sort and scatter": Work(lambda: published(scores_OI, round(0.2 * side))),
        "flat sort": Work(lambda: torch.sort(scores_OI.reshape(-1))),
    }
    works |= {f"rows, alpha {alpha}": Work(partial(rows, alpha)) for alpha in ALPHAS}
    works |= {f"whole, alpha {alpha}": Work(partial(whole, alpha)) for alpha in ALPHAS}
    seconds = timed(works, repeats, f"selection, {side} x {side}")
    pairs = [
        *itertools.product(
            [f"rows, alpha {alpha}" for alpha in ALPHAS], ["sort of the rows", "stable sort and scatter"]
        ),
        *itertools.product([f"whole, alpha {alpha}" for alpha in ALPHAS], ["flat sort"]),
    ]
    title = f"{side} x {side}, {torch.get_num_threads()} threads"
    checks = [
        Check(f"{title}: {ours} / {sort}", ratio(seconds, ours, sort), "most", MOST_OF_A_SORT) for ours, sort in pairs
    ]
    return {"side": side, "seconds": medians(seconds)}, checks


def published(scores_OI: Tensor, k: int) -> Tensor:
    """Mark the end of every row's stable sort."""
    order_OI = torch.sort(scores_OI, dim=-1, stable=True).indices
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(1, order_OI[:, -k:], True)


def against_one(size: str, folder: Path, repeats: int) -> tuple[dict[str, Any], list[Check]]:
    """Time scoring a model with one alpha and scope, and with many."""
    shape, antidote = SHAPES[size], method_named("antidote")
    write_checkpoint(shape, folder)
    model, rows = opened(folder), random_rows(shape)

    def scored(settings: list[dict[str, Any]]) -> None:
        problem = Problem(resolve_target(model), collect(model, rows, cache=False))
        found = plans(problem, antidote, [antidote.configure(given) for given in settings])
        for site in problem.target.sites:
            for _ in edits_of(site, found):
                pass

    works = {"one": Work(lambda: scored([SWEPT[3]])), "ten": Work(lambda: scored(SWEPT))}
    seconds = timed(works, repeats, f"selection, {size}: ten alphas")
    name = f"{size}, {torch.get_num_threads()} threads: ten alphas / one"
    return {"size": size, "seconds": medians(seconds)}, [Check(name, ratio(seconds, "ten", "one"), "most", MOST_OF_ONE)]


if __name__ == "__main__":
    main()
