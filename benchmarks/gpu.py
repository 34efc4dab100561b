"""Scoring a Llama-2-7B-shaped model of random weights on one GPU: seconds, share of the matrix peak, peak memory.

    python -m benchmarks.gpu --work /scratch/gpu --out runs/bench/gpu.json
    python -m benchmarks.gpu --config tiny --device cpu --work runs/bench/gpu --out runs/bench/gpu_tiny.json

Weights and LoRA in bfloat16, rank 256 on q, k and v, 2,000 rows of 256 random tokens. Every piece runs in a process of
its own: a large matrix product, which gives the peak; a bare forward pass by the plan that scoring uses; scoring with
the model in memory; scoring with its layers on the disk; and the published loop, in float32 with TF32 products, on as
many rows as fit in the time. Eight rows warm each of them up. What the published loop takes for all rows is derived:
its passes grow with the rows.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.io.files import write_json, write_text
from antidote_llm.io.resources import peak_rss_bytes
from antidote_llm.models.load import load_model
from benchmarks.published_loop import published_masks
from benchmarks.random_llama import Shape, opened, write_checkpoint
from benchmarks.scoring import ALPHA, Subject

CONFIGS = {
    "llama-2-7b": Shape(
        width=4096,
        inner=11_008,
        layers=32,
        heads=32,
        rank=256,
        rows=2_000,
        tokens=512_000,
        vocabulary=32_000,
        tied=False,
    ),
    "tiny": Shape(width=64, inner=172, layers=2, heads=4, rank=8, rows=24, tokens=24 * 32, vocabulary=256),
}
PIECES = ("matrix product", "bare pass", "in memory", "from the disk", "published loop")


def main() -> None:
    """Build the model, run every piece in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=list(CONFIGS), default="llama-2-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, required=True, help="keeps the model: 14 GB")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-tokens", type=int, help="padded tokens of a micro-batch; by default what scoring uses")
    parser.add_argument("--published-seconds", type=float, default=120, help="how long the published loop may take")
    parser.add_argument("--one", choices=["build", *PIECES], help="run one piece in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(piece(arguments)))
        return
    found = {name: apart(name) for name in ("build", *PIECES)}
    shape = CONFIGS[arguments.config]
    result = {"shape": vars(shape), "device": arguments.device, "flop": flop(shape), "pieces": found}
    write_json(arguments.out, result)
    write_text(arguments.out.with_suffix(".md"), markdown(shape, found))
    print(markdown(shape, found))


def apart(name: str) -> dict[str, float]:
    """Return the figures of one piece, run with this process's options in another."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--one", name]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(said.splitlines()[-1])
    print(name, figures, flush=True)
    return figures


def piece(arguments: argparse.Namespace) -> dict[str, float]:
    """Run one piece and return its figures."""
    shape, device, folder = CONFIGS[arguments.config], arguments.device, arguments.work / arguments.config
    if arguments.one == "build":
        return clocked(device, lambda: write_checkpoint(shape, folder, device, torch.bfloat16))
    if arguments.one == "matrix product":
        return {"flop_per_second": matrix_peak(device, 8192 if device.startswith("cuda") else 1024)}
    rows = rows_of(shape)
    if arguments.one == "published loop":
        return published(shape, folder, device, rows, arguments.published_seconds)
    if arguments.one == "from the disk":
        model = load_model(str(folder / "base"), str(folder / "adapter"), device=device, layers_on_disk=True)
    else:
        model = opened(folder, device=device)
    subject = Subject(model, rows, arguments.batch_tokens or CalibrationSettings().on(model.device).batch_tokens)
    Subject(model, rows[:8], subject.batch_tokens).scored()
    work = subject.bare(subject.batch_tokens).run if arguments.one == "bare pass" else subject.scored
    figures = clocked(device, work)
    parts = {name: times[0] for name, times in subject.parts.items() if times}
    return {**figures, **parts, "rows": len(rows)}


def rows_of(shape: Shape) -> list[TokenizedRow]:
    """Return rows of random tokens, all of the same length."""
    draw, length = random.Random(0), shape.tokens // shape.rows
    return [
        TokenizedRow([draw.randrange(1, shape.vocabulary) for _ in range(length)], length // 2)
        for _ in range(shape.rows)
    ]


def published(shape: Shape, folder: Path, device: str, rows: list[TokenizedRow], seconds: float) -> dict[str, float]:
    """Run the published loop on a few rows, and then on as many as fit in the time."""
    torch.backends.cuda.matmul.allow_tf32 = True
    model = opened(folder, "float32", device).model
    ids = [row.input_ids for row in rows]
    few = min(8, len(ids))
    first = clocked(device, lambda: published_masks(model, ids[:few], ALPHA))["seconds"]
    count = max(few, min(len(ids), int(seconds / first * few)))
    figures = clocked(device, lambda: published_masks(model, ids[:count], ALPHA))
    # What does not grow with the rows, sorts and masks, is in both.
    each = (figures["seconds"] - first) / (count - few) if count > few else first / few
    return {**figures, "rows": count, "derived_seconds": figures["seconds"] + each * (shape.rows - count)}


def clocked(device: str, work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of a piece of work and the most memory that it held."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    found: dict[str, float] = {"seconds": time.perf_counter() - start, "peak_rss_bytes": peak_rss_bytes()}
    return {**found, "peak_device_bytes": torch.cuda.max_memory_allocated()} if on_gpu else found


def matrix_peak(device: str, size: int) -> float:
    """Return the floating-point operations per second of a large product of bfloat16 matrices: the median of many."""
    first, second = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [clocked(device, lambda: first @ second)["seconds"] for _ in range(30)]
    return 2 * size**3 / statistics.median(seconds[5:])


def flop(shape: Shape) -> int:
    """Return the floating-point operations of one pass through the decoder: products, and causal attention."""
    length = shape.tokens // shape.rows
    return shape.tokens * (2 * shape.linear_parameters + 2 * length * shape.width * shape.layers)


def markdown(shape: Shape, found: dict[str, dict[str, float]]) -> str:
    """Return the table."""
    peak = found["matrix product"]["flop_per_second"]
    lines = [
        f"Matrix product: {peak / 1e12:,.1f} TFLOP/s; the floor of one pass at that rate: {flop(shape) / peak:.3f} s",
        "",
        "| | rows | seconds | seconds for all rows | share of the matrix peak | GPU memory, GB | resident memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in PIECES[1:]:
        figures = found[name]
        every = figures.get("derived_seconds", figures["seconds"])
        on_device = f"{figures['peak_device_bytes'] / 1e9:.2f}" if "peak_device_bytes" in figures else ""
        cells = (f"{figures['rows']:,}", f"{figures['seconds']:.3f}", f"{every:.3f}")
        share = f"{flop(shape) / every / peak:.2f}"
        lines.append(
            f"| {name} | {' | '.join(cells)} | {share} | {on_device} | {figures['peak_rss_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
