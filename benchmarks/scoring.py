"""What scoring and selection cost beside a bare forward pass over the same tokens, and beside the published loop.

    python -m benchmarks.scoring --work runs/bench/models --out runs/bench/scoring.json

Random llamas with a LoRA adapter on q, k and v, rows of random tokens and of log-normal lengths. The bare pass is the
decoder with its adapter, without the head, in inference mode, on batches that were made before: once by the plan and in
the order that scoring uses, once by the best plan of a search over batch sizes, with and without a mask. Scoring is
`collect` and the masks of every matrix, nothing cached and nothing written. All take turns in one process; figures are
medians over rounds, and ratios those of the same round.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from antidote_llm.calibration.batching import batch_plan, padded, padded_tokens
from antidote_llm.calibration.collect import collect
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.io.files import write_json, write_text
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.edits import Plan, Problem, plan
from antidote_llm.repairs.method import method_named
from benchmarks.interleaved import Check, Seconds, Work, checks_table, load_average, medians, ratio, timed
from benchmarks.mask_agreement import agreement
from benchmarks.published_loop import published_masks
from benchmarks.random_llama import SHAPES, opened, random_rows, write_checkpoint

ALPHA = 0.2
SEARCHED = (512, 768, 1024, 1536, 2048, 4096, 8192)
SEARCHED_BY_SMALL = (1024, 4096)
# A processor without instructions for bfloat16 takes many times as long in it: the small set leaves it out.
SMALL_EVERY, SMALL_REPEATS = 40, 3
# The most that scoring may cost in bare passes, and the least that the published loop does in scorings, by size.
MOST = {"1M": 1.25, "27M": 1.10}
LEAST = {"1M": 3.0, "27M": 2.2}
LEAST_BF16 = 1.3


@dataclass
class Subject:
    """One model with its rows, and what is timed on it."""

    model: LoadedModel
    rows: Sequence[TokenizedRow]
    batch_tokens: int
    parts: dict[str, list[float]] = field(default_factory=lambda: {"collect": [], "select": []})

    def bare(self, batch_tokens: int, *, mask: bool = True) -> Work:
        """Return a forward pass over the rows and nothing else."""
        decoder = self.model.causal_model.base_model
        batches = [padded(batch, "all") for batch in batch_plan(self.rows, batch_tokens)]

        def run() -> None:
            with torch.inference_mode():
                for batch in batches:
                    decoder(
                        input_ids=batch.input_ids_BT,
                        attention_mask=batch.attention_mask_BT if mask else None,
                        position_ids=batch.position_ids_BT,
                        use_cache=False,
                    )

        return Work(run)

    def scored(self) -> Plan:
        """Collect the statistics, and find the mask of every matrix."""
        start = time.perf_counter()
        settings = CalibrationSettings(batch_tokens=self.batch_tokens)
        moments = collect(self.model, self.rows, settings, cache=False)
        collected = time.perf_counter()
        antidote = method_named("antidote")
        found = plan(
            Problem(resolve_target(self.model), moments),
            antidote,
            antidote.configure({"alpha": ALPHA}, "official-code"),
        )
        for site in found.problem.target.sites:
            for _ in found.edits(site):
                pass
        self.parts["collect"].append(collected - start)
        self.parts["select"].append(time.perf_counter() - collected)
        return found

    def published(self) -> dict[str, torch.Tensor]:
        """Run the published loop."""
        return published_masks(self.model.model, [row.input_ids for row in self.rows], ALPHA)

    def best_bare(self, searched: Sequence[int], what: str) -> tuple[Work, dict[str, Any]]:
        """Search for the fastest bare pass on a quarter of the rows; the fastest of two tries counts."""
        every = 4 if len(self.rows) >= 100 else 1
        sample = Subject(self.model, thinned(self.rows, self.batch_tokens, every), self.batch_tokens)
        plans = list(itertools.product(searched, (True, False)))
        works = {f"{size} {mask}": sample.bare(size, mask=mask) for size, mask in plans}
        seconds = timed(works, repeats=2, what=f"{what}: search for the fastest plan")
        size, mask = min(plans, key=lambda plan: min(seconds[f"{plan[0]} {plan[1]}"]))
        return self.bare(size, mask=mask), {"batch_tokens": size, "mask": mask}


def main() -> None:
    """Time every size with every number of threads, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps the models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({torch.get_num_threads(), 1}, reverse=True))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=CalibrationSettings().batch_tokens)
    parser.add_argument("--every", type=int, default=1, help="of the larger model, take one micro-batch out of so many")
    parser.add_argument(
        "--small",
        action="store_true",
        help="one micro-batch in 40 of the larger model, float32, all threads, three rounds: a minute",
    )
    arguments = parser.parse_args()
    threads = arguments.threads[:1] if arguments.small else arguments.threads
    cases: list[dict[str, Any]] = []
    checks: list[Check] = []
    for size, count in itertools.product(arguments.sizes, threads):
        torch.set_num_threads(count)
        cases.append(measured(size, count, arguments))
        print(markdown(cases[-1]), flush=True)
        checks = [check for case in cases for check in checks_of(case)]
        write_json(arguments.out, {"cases": cases, "checks": [check.as_json() for check in checks]})
        text = "\n".join([*(markdown(case) for case in cases), checks_table(checks)])
        write_text(arguments.out.with_suffix(".md"), text)
    print(checks_table(checks))


def measured(size: str, threads: int, given: argparse.Namespace) -> dict[str, Any]:
    """Time one size with the threads that are set."""
    shape, load, batch_tokens, small = SHAPES[size], load_average(), given.batch_tokens, given.small
    folder, what = given.work / size, f"scoring {size}, {threads} threads"
    every = 1 if size == "1M" else SMALL_EVERY if small else given.every
    searched = SEARCHED_BY_SMALL if small else SEARCHED
    write_checkpoint(shape, folder)
    rows = thinned(random_rows(shape), batch_tokens, every)
    subject = Subject(opened(folder), rows, batch_tokens)
    best, best_plan = subject.best_bare(searched, what)
    plans = {"fp32": best_plan}
    works = {
        "bare pass": subject.bare(batch_tokens),
        "bare pass, best plan": best,
        "ours": Work(subject.scored),
        "published loop": Work(subject.published),
    }
    if size != "1M" and not small:
        narrow = Subject(opened(folder, "bfloat16"), rows, batch_tokens)
        best, plans["bf16"] = narrow.best_bare(searched, f"{what}, bf16")
        works["bare pass, bf16"] = narrow.bare(batch_tokens)
        works["bare pass, bf16, best plan"] = best
        works["ours, bf16"] = Work(narrow.scored)
    seconds = timed(works, SMALL_REPEATS if small else given.repeats, what)
    tokens = sum(len(row.input_ids) for row in rows)
    padded_count = sum(padded_tokens(batch) for batch in batch_plan(rows, batch_tokens))
    return {
        "size": size,
        "parameters": shape.parameters,
        "rows": len(rows),
        "tokens": tokens,
        "padded_tokens": padded_count,
        "threads": torch.get_num_threads(),
        "batch_tokens": batch_tokens,
        "best_plans": plans,
        "load_average": [load, load_average()],
        "parts": medians({name: found[1:] for name, found in subject.parts.items()}),
        "masks": vars(agreement(subject.scored(), subject.published())),
        "summary": medians(seconds),
        "seconds": seconds,
    }


def thinned(rows: Sequence[TokenizedRow], batch_tokens: int, every: int) -> list[TokenizedRow]:
    """Return the rows of one micro-batch out of ``every``: fewer rows that need no more pads than all did."""
    return [row for batch in batch_plan(rows, batch_tokens)[every // 2 :: every] for row in batch]


def checks_of(case: dict[str, Any]) -> list[Check]:
    """Return the ratios of a case beside their limits."""
    size, seconds = case["size"], case["seconds"]
    where = f"{size}, {case['threads']} thread{'s' if case['threads'] > 1 else ''}"
    checks = _against_limit(seconds, where, size, "")
    checks.append(
        Check(f"{where}: published loop / ours", ratio(seconds, "published loop", "ours"), "least", LEAST[size])
    )
    if "ours, bf16" in seconds:
        checks += _against_limit(seconds, f"{where}, bf16", size, ", bf16")
        checks.append(Check(f"{where}: ours / ours in bf16", ratio(seconds, "ours", "ours, bf16"), "least", LEAST_BF16))
    return checks


def _against_limit(seconds: Seconds, where: str, size: str, kind: str) -> list[Check]:
    return [
        Check(f"{where}: ours / {bare}", ratio(seconds, f"ours{kind}", full), "most", MOST[size])
        for bare, full in (
            ("bare pass", f"bare pass{kind}"),
            ("best bare pass", f"bare pass{kind}, best plan"),
        )
    ]


def markdown(case: dict[str, Any]) -> str:
    """Return one case as a table."""
    lines = [
        f"{case['size']}: {case['rows']} rows, {case['tokens']:,} tokens, {case['threads']} threads, micro-batches of "
        f"{case['batch_tokens']}; masks: {case['masks']['differing']} of {case['masks']['entries']:,} bits differ",
        "",
        "| | seconds | range | tokens/s |",
        "|---|---:|---:|---:|",
    ]
    for name, found in case["summary"].items():
        lines.append(
            f"| {name} | {found['median']:.3f} | {found['min']:.3f} to {found['max']:.3f} | "
            f"{case['tokens'] / found['median']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
