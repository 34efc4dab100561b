"""What a step of each defense costs beside a step of plain fine-tuning: time and memory, in one run.

    python -m benchmarks.step_time --out docs/results/step_time.json

A llama of random weights on random tokens; every training is a process of its own, the defenses take turns, and the
figures are medians over rounds. Time is that of the optimiser steps alone. Memory is the process's peak above what it
held when the model was loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.choices import TrainingStage as Stage
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.io.files import write_json, write_text
from antidote_llm.io.resources import peak_rss_bytes
from antidote_llm.training.defense import StageData, defense_named, run_stage
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import RunOptions

# The most that a step may cost, in steps of plain fine-tuning.
LIMITS = {"vaccine": 2.1, "booster": 3.2, "lisa": 1.05, "ldifs": 1.6, "repnoise": 3.0, "repnoise-final": 2.2}
RUNS: dict[str, tuple[Stage, str, dict[str, Any]]] = {
    "sft": ("finetuning", "sft", {}),
    "vaccine": ("alignment", "vaccine", {}),
    "booster": ("alignment", "booster", {}),
    "repnoise": ("alignment", "repnoise", {}),
    "repnoise-final": ("alignment", "repnoise", {"layerwise": False}),
    "lisa": ("finetuning", "lisa", {"alignment_steps": 2, "user_steps": 18}),
    "ldifs": ("finetuning", "ldifs", {}),
    "mixin": ("finetuning", "mixin", {}),
}
VOCABULARY, PROMPT_TOKENS, TOKENS, ROWS = 4096, 32, 128, 96
SETTINGS = TrainingSettings(learning_rate=1e-4, batch_size=8, max_length=TOKENS)
WARM_STEPS, STEPS = 2, 8


def main() -> None:
    """Run every defense in turns, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", help="run one training in this process and print its figures")
    parser.add_argument("--kind", choices=["lora", "full"], default="lora")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one, arguments.kind, arguments.width, arguments.layers)))
        return
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        for kind in ("lora", "full"):
            for name in RUNS:
                rounds.append({"round": number, "kind": kind, "run": name, **apart(name, kind, arguments)})
                print(json.dumps(rounds[-1]), flush=True)
    summary = {kind: summarised(rounds, kind) for kind in ("lora", "full")}
    shape = {"width": arguments.width, "layers": arguments.layers, "tokens": TOKENS, "threads": torch.get_num_threads()}
    write_json(arguments.out, {"shape": shape, "rounds": rounds, "summary": summary})
    write_text(arguments.out.with_suffix(".md"), markdown(summary))
    print(markdown(summary))


def apart(name: str, kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the figures of one training in a process of its own."""
    shape = ("--width", str(arguments.width), "--layers", str(arguments.layers), "--out", str(arguments.out))
    command = [sys.executable, "-m", "benchmarks.step_time", "--one", name, "--kind", kind, *shape]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def measured(name: str, kind: str, width: int, layers: int) -> dict[str, float]:
    """Train for some steps, and return the median time of a step and the peak of memory."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            pad_token_id=0,
        )
    )
    stage, defense_name, settings = RUNS[name]
    defense = defense_named(stage, defense_name)
    auxiliary = rows(1) if defense.needs_auxiliary else []
    data = StageData(Renderer(None), rows(0), auxiliary)
    lora = LoraSettings(rank=64, alpha=4) if kind == "lora" else None
    training = SETTINGS.model_copy(update={"max_steps": WARM_STEPS + STEPS, "lora": lora})
    ends: list[float] = []
    held_bytes = peak_rss_bytes()
    running = RunOptions(on_step=lambda *_: ends.append(time.perf_counter()))
    run_stage(model, data, defense, training, defense.configure(settings), running)
    steps = [after - before for before, after in itertools.pairwise(ends)][WARM_STEPS - 1 :]
    return {"step_seconds": statistics.median(steps), "peak_bytes": peak_rss_bytes() - held_bytes}


def rows(kind: int) -> list[Record]:
    """Return rows of random tokens; both kinds ask the same and answer differently."""
    found = []
    for index in range(ROWS):
        asked = torch.Generator().manual_seed(index)
        answered = torch.Generator().manual_seed(1000 + 2 * index + kind)
        ids = torch.randint(5, VOCABULARY, (PROMPT_TOKENS,), generator=asked).tolist()
        ids += torch.randint(5, VOCABULARY, (TOKENS - PROMPT_TOKENS,), generator=answered).tolist()
        found.append(Record(input_ids=tuple(ids), response_start=PROMPT_TOKENS))
    return found


def summarised(rounds: list[dict[str, Any]], kind: str) -> dict[str, dict[str, float | None]]:
    """Return medians over rounds, as ratios to plain fine-tuning of the same round."""
    found: dict[str, dict[str, float | None]] = {}
    plain = {each["round"]: each for each in rounds if each["kind"] == kind and each["run"] == "sft"}
    for name in RUNS:
        own = [each for each in rounds if each["kind"] == kind and each["run"] == name]
        found[name] = {
            "step_seconds": statistics.median(each["step_seconds"] for each in own),
            "peak_bytes": statistics.median(each["peak_bytes"] for each in own),
            "time_ratio": statistics.median(e["step_seconds"] / plain[e["round"]]["step_seconds"] for e in own),
            "memory_ratio": statistics.median(e["peak_bytes"] / plain[e["round"]]["peak_bytes"] for e in own),
            "limit": LIMITS.get(name),
        }
    return found


def markdown(summary: dict[str, Any]) -> str:
    """Return one table: a defense a row."""
    lines = [
        "| defense | step, LoRA | step, all weights | limit | memory, LoRA | memory, all weights |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in RUNS:
        lora, full = summary["lora"][name], summary["full"][name]
        limit = f"{lora['limit']:.2f}" if lora["limit"] else ""
        times = f"{lora['time_ratio']:.2f} | {full['time_ratio']:.2f}"
        lines.append(f"| {name} | {times} | {limit} | {lora['memory_ratio']:.2f} | {full['memory_ratio']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
