"""Peak memory and time of a repair by both engines: the whole model in memory, and one decoder layer at a time.

    python -m benchmarks.streaming --work runs/streaming --out docs/results/streaming.json

Random bf16 weights in the shapes of TinyLlama-1.1B (arXiv 2401.02385) and of half of it, built on the spot in shards.
Every repair is the real command in a process of its own, the engines in turn, several times in one run; the figures are
medians. Memory is the largest resident set that the system reports: what the libraries take is in it, and is shown.
Both engines must give the same bytes. At the end comes a repair in a control group whose memory is limited to less than
the model's bytes, where one can be made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antidote_llm.io.files import sha256_file, write_json, write_text
from benchmarks.half_billion import measured, summarised

SHAPES = {
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "0.5B": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 18, "num_attention_heads": 24},
    "40M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8},
}
VOCABULARY = 32_000
IMPORTS = "import antidote_llm.cli.main, antidote_llm.cli.repair"
MEMORY_LIMIT, TIME_LIMIT = 0.45, 1.15
LEAST_LIMIT = 1_200_000_000
CONTROL_GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


def main() -> None:
    """Build the checkpoints, repair each by both engines in turn, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps the checkpoints; a finished build stays")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1.1B", "0.5B"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a model of 40M, once: a minute")
    parser.add_argument("--build", metavar="SHAPE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.build:
        build(given.work / given.build, given.build)
        return
    if given.small:
        given.shapes, given.repeats = ["40M"], 1
    draw = random.Random(0)
    rows = [
        json.dumps({"input_ids": [draw.randrange(VOCABULARY) for _ in range(given.tokens)]}) for _ in range(given.rows)
    ]
    given.work.mkdir(parents=True, exist_ok=True)
    write_text(given.work / "rows.jsonl", "\n".join(rows) + "\n")
    found: dict[str, Any] = {}
    for shape in given.shapes:
        if not (given.work / shape / "config.json").is_file():
            itself = [sys.executable, "-m", "benchmarks.streaming", "--build", shape]
            subprocess.run([*itself, "--work", str(given.work), "--out", str(given.out)], check=True)
        found[shape] = both_engines(given.work, shape, given.repeats)
        print(json.dumps(found[shape]["ratios"]), flush=True)
        tokens = given.rows * given.tokens
        write_json(given.out, {"rows": given.rows, "tokens": tokens, "repeats": given.repeats, "shapes": found})
        write_text(given.out.with_suffix(".md"), markdown(found))
    print(markdown(found))


def build(folder: Path, shape: str) -> None:
    """Write a checkpoint of random weights; its configuration comes last."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=settings["num_attention_heads"] // 8, eos_token_id=0, **settings
    )
    torch.manual_seed(0)
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="300MB")


def both_engines(work: Path, shape: str, repeats: int) -> dict[str, Any]:
    """Repair one checkpoint by both engines in turn, and under a hard limit."""
    model, out = work / shape, work / "out"
    command = [sys.executable, "-m", "antidote_llm", "repair", model, "--target", "weight", "--harmful"]
    command += [work / "rows.jsonl", "--evaluate", "none", "--no-cache", "--out", out]
    runs: dict[str, list[dict[str, float]]] = {"libraries alone": [], "memory": [], "streaming": []}
    hashes: dict[str, set[str]] = {}
    parts: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        runs["libraries alone"].append(measured([sys.executable, "-c", IMPORTS], work))
        for engine in ("memory", "streaming"):
            shutil.rmtree(out, ignore_errors=True)
            runs[engine].append(measured([str(part) for part in (*command, "--engine", engine)], work))
            hashes.setdefault(engine, set()).add(hash_of(out))
            record = json.loads((out / "record" / "repair.json").read_text())
            parts.setdefault(engine, []).append(record["wall_seconds"])
            print(shape, engine, runs[engine][-1], record["wall_seconds"], flush=True)
    summary = {name: summarised(each) for name, each in runs.items()}
    model_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    limit = under_a_hard_limit(command, work, model_bytes)
    return {
        "model_bytes": model_bytes,
        "summary": summary,
        "parts": parts,
        "same_bits": hashes["memory"] == hashes["streaming"] and len(hashes["memory"]) == 1,
        "hard_limit": limit if "not_run" in limit else limit | {"same_bits": hash_of(out) in hashes["memory"]},
        "ratios": {
            "peak_memory": ratio(summary, "peak_rss_bytes"),
            "wall_time": ratio(summary, "wall_seconds"),
            "limits": {"peak_memory": MEMORY_LIMIT, "wall_time": TIME_LIMIT},
        },
    }


def under_a_hard_limit(command: Sequence[object], work: Path, model_bytes: int) -> dict[str, Any]:
    """Repair where the system ends a process that holds more than a limit: a control group; memory of files counts."""
    limit = int(0.6 * model_bytes)
    if limit < LEAST_LIMIT:
        return {"limit_bytes": limit, "model_bytes": model_bytes, "not_run": "the libraries take as much as the model"}
    group = next((root / f"antidote-{os.getpid()}" for root in CONTROL_GROUPS if root.is_dir()), None)
    if group is None or not os.access(group.parent, os.W_OK):
        return {"limit_bytes": limit, "model_bytes": model_bytes, "not_run": "no control group can be made here"}
    group.mkdir()
    name = "memory.max" if group.parent == CONTROL_GROUPS[-1] else "memory.limit_in_bytes"
    (group / name).write_text(str(limit))

    def limited() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    shutil.rmtree(work / "out", ignore_errors=True)
    told = [str(part) for part in (*command, "--max-ram", str(limit))]
    with (work / "log").open("wb") as log:
        code = subprocess.run(told, stdout=log, stderr=log, preexec_fn=limited, check=False).returncode
    group.rmdir()
    if code != 0:
        raise SystemExit(f"exit code {code}: {(work / 'log').read_text()}")
    return {"limit_bytes": limit, "model_bytes": model_bytes}


def hash_of(out: Path) -> str:
    """Return one hash over all weight files and the patch of a result."""
    paths = [*sorted((out / "model").glob("*.safetensors")), out / "record" / "patch.safetensors"]
    return "".join(sha256_file(path) for path in paths)


def ratio(summary: dict[str, Any], name: str) -> float:
    """Return streaming's median over memory's."""
    return float(summary["streaming"][name]["median"] / summary["memory"][name]["median"])


def markdown(found: dict[str, Any]) -> str:
    """Return the table."""
    lines = ["| model | engine | seconds | peak memory, MB | of the memory engine's time | of its memory |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for shape, result in found.items():
        for name, row in result["summary"].items():
            seconds, peak = row["wall_seconds"]["median"], row["peak_rss_bytes"]["median"]
            whole = result["summary"]["memory"]
            of_time, of_memory = seconds / whole["wall_seconds"]["median"], peak / whole["peak_rss_bytes"]["median"]
            lines.append(f"| {shape} | {name} | {seconds:.1f} | {peak / 1e6:.0f} | {of_time:.2f} | {of_memory:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
