"""Time and peak memory of repairing a checkpoint of half a billion bf16 parameters, beside loading and saving it.

    python -m benchmarks.half_billion --work runs/half-billion --out docs/results/half_billion.json

Random weights in the shape of Qwen2-0.5B (arXiv 2407.10671), built on the spot, in shards; an aligned model and one
fine-tuned from it. Every step runs in a process of its own, several times, in one run; the figures are medians.
Memory is the largest resident set that the system reports for the process: pages of files that are mapped count too.
This process imports neither torch nor transformers: a child's figure is never less than what its parent held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antidote_llm.io.files import write_json, write_text

ROWS, TOKENS = 40, 32
LOAD_AND_SAVE = (
    "import sys; from transformers import AutoModelForCausalLM; "
    "AutoModelForCausalLM.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2], max_shard_size='300MB')"
)
FORWARD = (
    "import json, sys, torch; from transformers import AutoModelForCausalLM; "
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval(); "
    "rows = [json.loads(line)['input_ids'] for line in open(sys.argv[2])]\n"
    "with torch.inference_mode():\n"
    "    model.base_model(torch.tensor(rows), use_cache=False)"
)


def main() -> None:
    """Build the checkpoints, run every step, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps the checkpoints; a finished build stays")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--build-only", action="store_true", help="write the checkpoints and measure nothing")
    arguments = parser.parse_args()
    aligned, tuned, rows = (arguments.work / name for name in ("aligned", "tuned", "rows.jsonl"))
    if arguments.build_only:
        build(aligned, tuned, rows)
        return
    if not rows.is_file():
        itself = [sys.executable, "-m", "benchmarks.half_billion", "--build-only"]
        subprocess.run([*itself, "--work", str(arguments.work), "--out", str(arguments.out)], check=True)
    out = arguments.work / "out"
    repair = [sys.executable, "-m", "antidote_llm", "repair", tuned, "--evaluate", "none", "--no-cache", "--out", out]
    steps: dict[str, Sequence[object]] = {
        "import transformers": [sys.executable, "-c", "from transformers import AutoModelForCausalLM"],
        "load and save with transformers": [sys.executable, "-c", LOAD_AND_SAVE, tuned, out],
        "load, one forward pass": [sys.executable, "-c", FORWARD, tuned, rows],
        "repair, delta by magnitude": [*repair, "--aligned", aligned, "--method", "magnitude"],
        "repair, delta": [*repair, "--aligned", aligned, "--harmful", rows],
        "repair, delta, scope global": [*repair, "--aligned", aligned, "--harmful", rows, "--scope", "global"],
        "repair, weights of q k v": [*repair, "--target", "weight", "--sites", "qkv", "--harmful", rows],
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(arguments.repeats):
        for name, command in steps.items():
            shutil.rmtree(out, ignore_errors=True)
            found[name].append(measured([str(part) for part in command], arguments.work))
            record = out / "record" / "repair.json"
            if record.is_file():
                patch = json.loads(record.read_text())["patch"]
                found[name][-1] |= {key: patch[key] for key in ("size_bytes", "predicted_bytes")}
            print(name, found[name][-1], flush=True)
    summary = {name: summarised(runs) for name, runs in found.items()}
    model_bytes = sum(path.stat().st_size for path in tuned.glob("*.safetensors"))
    write_json(
        arguments.out,
        {
            "model_bytes": model_bytes,
            "rows": ROWS,
            "tokens": ROWS * TOKENS,
            "threads": os.environ.get("OMP_NUM_THREADS", os.cpu_count()),
            "repeats": arguments.repeats,
            "summary": summary,
            "runs": found,
        },
    )
    write_text(arguments.out.with_suffix(".md"), markdown(summary))
    print(markdown(summary))


def build(aligned: Path, tuned: Path, rows: Path) -> None:
    """Write the aligned model, the fine-tuned one, and the calibration rows, which come last."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(aligned, max_shard_size="300MB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    model.save_pretrained(tuned, max_shard_size="300MB")
    draw = random.Random(0)
    lines = [json.dumps({"input_ids": [draw.randrange(151_936) for _ in range(TOKENS)]}) for _ in range(ROWS)]
    write_text(rows, "\n".join(lines) + "\n")


def measured(command: list[str], work: Path) -> dict[str, float]:
    """Run a command and return its wall time and its largest resident memory."""
    with (work / "log").open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit((work / "log").read_text())
    return {"wall_seconds": seconds, "peak_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


def summarised(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return median and extremes of every figure."""
    return {
        name: {
            "median": statistics.median(run[name] for run in runs),
            "min": min(run[name] for run in runs),
            "max": max(run[name] for run in runs),
        }
        for name in runs[0]
    }


def markdown(summary: dict[str, Any]) -> str:
    """Return the table, with ratios to loading and saving."""
    limit = summary["load and save with transformers"]
    lines = [
        "| step | seconds | of load and save | peak memory, MB | of load and save | patch, MB (stated before) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in summary.items():
        seconds, peak = found["wall_seconds"], found["peak_rss_bytes"]
        ratios = [
            values["median"] / limit[key]["median"]
            for key, values in (("wall_seconds", seconds), ("peak_rss_bytes", peak))
        ]
        patch = ""
        if "size_bytes" in found:
            patch = f"{found['size_bytes']['median'] / 1e6:.1f} ({found['predicted_bytes']['median'] / 1e6:.1f})"
        lines.append(
            f"| {name} | {seconds['median']:.1f} ({seconds['min']:.1f} to {seconds['max']:.1f}) | {ratios[0]:.2f} | "
            f"{peak['median'] / 1e6:,.0f} | {ratios[1]:.2f} | {patch} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
