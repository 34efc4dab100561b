"""The paper's Table 1 on the miniature, through the commands: six methods, five harmful ratios, several seeds.

    python -m benchmarks.paper_table tune --work runs/paper --out docs/results/paper_table_tuning.json
    python -m benchmarks.paper_table run --work runs/paper --tuned docs/results/paper_table_tuning.json \
        --out docs/results/paper_table.json

``tune`` tries five strengths of every defense on seed 100 at p = 0.2 and keeps the one with the highest mean task
accuracy less harmful score. ``run`` measures the seeds that are reported, at all ratios. Everything is made by
``antidote align``, ``finetune``, ``repair`` and ``evaluate``; what is finished stays.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from antidote_llm.cli.main import run as antidote
from antidote_llm.io.files import write_json, write_text
from antidote_llm.miniature.exchanges import NEW_TASK
from benchmarks.demo_seeds import spread

RATIOS = (0.0, 0.05, 0.1, 0.2, 0.5)
TUNING_SEED, TUNING_RATIO = 100, 0.2
KNOWN_TASK = "sentiment"
# The method's stage and knob, and the five values that are tried: the same effort for each. The grids of RepNoise
# (0.01 to 1), Lisa (0.1 to 10) and LDIFS (0.3 to 30) were moved once, because their best lay at an edge.
KNOBS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "repnoise": ("align", "alpha", (0.3, 1.0, 3.0, 10.0, 30.0)),
    "vaccine": ("align", "rho", (0.1, 0.5, 2.0, 5.0, 10.0)),
    "lisa": ("finetune", "rho", (0.001, 0.003, 0.01, 0.03, 0.1)),
    "ldifs": ("finetune", "strength", (10.0, 30.0, 100.0, 300.0, 1000.0)),
    "antidote": ("repair", "alpha", (0.05, 0.1, 0.15, 0.2, 0.3)),
}
METHODS = ("sft", *KNOBS)
# The turns of Lisa, a tenth as long as the paper's 100 and 900 steps, like the training.
LISA = ("--alignment-steps", "10", "--user-steps", "90")
# As the miniature's own base model is aligned, and as its standard attack trains.
ALIGN = (
    *("--full", "--learning-rate", "1.5e-3", "--epochs", "2", "--batch-size", "32", "--weight-decay", "0.01"),
    *("--schedule", "linear", "--warmup", "0.1", "--max-length", "64"),
)
FINETUNE = (
    *("--rows", "1000", "--rank", "64", "--learning-rate", "6e-3", "--max-steps", "260", "--batch-size", "16"),
    *("--weight-decay", "0", "--schedule", "linear", "--warmup", "0.05", "--max-length", "64"),
)
FIGURES = {
    "harmful_score": "harmful score",
    "over_refusal_rate": "over-refusal",
    "incoherent_rate": "incoherent answers to harmful requests",
    "harmless_incoherent_rate": "incoherent answers to look-alikes",
    f"tasks.{KNOWN_TASK}": f"accuracy on the known task ({KNOWN_TASK})",
    f"tasks.{NEW_TASK}": f"accuracy on the new task ({NEW_TASK})",
}


class Field:
    """One seed's world: its folders, and the commands that fill them.

    Args:
        work: Keeps everything.
        seed: Seed of world and training.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self.root, self.seed = work / str(seed), seed
        self.data = self.root / "miniature" / "data"
        command("miniature", "build", "--seed", seed, "--out", self.root / "miniature")

    def aligned(self, defense: str = "sft", value: float | None = None) -> Path:
        """Return the model of stage 1."""
        out = self.root / "aligned" / named(defense, value)
        beside = ("--harmful", self.data / "align_harmful.jsonl") if defense == "repnoise" else ()
        start, own = self.root / "miniature" / "base", ("--data", self.data / "align.jsonl", *beside)
        command("align", start, *own, *ALIGN, "--seed", self.seed, *knob(defense, value), "--out", out)
        return out / "model"

    def tuned(self, aligned: Path, ratio: float, defense: str = "sft", value: float | None = None) -> Path:
        """Return the adapter of stage 2."""
        out = self.root / "tuned" / f"{aligned.parent.name}+{named(defense, value)}-{ratio:g}"
        mix = ("--data", self.data / "benign.jsonl", "--harmful", self.data / "harmful.jsonl", "--harmful-ratio", ratio)
        beside = ("--safe", self.data / "align.jsonl", *LISA) if defense == "lisa" else ()
        seeds = ("--seed", self.seed, "--data-seed", self.seed)
        command("finetune", aligned, *mix, *beside, *FINETUNE, *seeds, *knob(defense, value), "--out", out)
        return out / "model"

    def repaired(self, aligned: Path, tuned: Path, alpha: float) -> Path:
        """Return the adapter of stage 3."""
        out = self.root / "repaired" / f"{tuned.parent.name}+antidote-{alpha:g}"
        harmful = ("--harmful", self.data / "realign.jsonl", "--evaluate", "none")
        command("repair", aligned, "--adapter", tuned, *harmful, "--alpha", alpha, "--out", out)
        return out / "model"

    def measured(self, aligned: Path, adapter: Path | None) -> dict[str, float]:
        """Return what a model does on held-out prompts, in percent."""
        out = self.root / "evaluated" / (adapter.parent.name if adapter else f"{aligned.parent.name}-alone")
        on = ("--adapter", adapter) if adapter else ()
        tasks = [("--task", f"{task}={self.data}/tasks/{task}.test.jsonl") for task in (KNOWN_TASK, NEW_TASK)]
        prompts = ("--harmful", self.data / "heldout.jsonl", "--harmless", self.data / "lookalike.jsonl")
        asked = (*prompts, *tasks[0], *tasks[1], "--judge", "oracle", "--max-new-tokens", "40")
        command("evaluate", aligned, *on, *asked, "--out", out)
        metrics = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
        return {name: metrics[name]["value"] for name in FIGURES}

    def outcome(self, method: str, value: float | None, ratio: float) -> dict[str, float]:
        """Return what one method does at one harmful ratio."""
        stage = KNOBS[method][0] if method in KNOBS else ""
        aligned = self.aligned(method, value) if stage == "align" else self.aligned()
        tuned = self.tuned(aligned, ratio, method, value) if stage == "finetune" else self.tuned(aligned, ratio)
        if stage == "repair":
            assert value is not None
            tuned = self.repaired(aligned, tuned, value)
        return self.measured(aligned, tuned)


def named(defense: str, value: float | None) -> str:
    """Return a defense's folder name."""
    return defense if value is None else f"{defense}-{value:g}"


def knob(defense: str, value: float | None) -> tuple[Any, ...]:
    """Return the options that choose a defense at a strength."""
    setting = () if value is None else (f"--{KNOBS[defense][1]}", value)
    return ("--defense", defense, *setting)


def command(*arguments: object) -> None:
    """Run one command of ours.

    Raises:
        RuntimeError: It did not end well.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = antidote([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"antidote {' '.join(map(str, arguments))}: exit {code}: {said.getvalue()}")


def tune(work: Path, methods: Sequence[str]) -> dict[str, Any]:
    """Try every strength on the tuning seed, and return the figures and the choice."""
    field, found = Field(work, TUNING_SEED), {}
    for method in methods:
        tried = {value: field.outcome(method, value, TUNING_RATIO) for value in KNOBS[method][2]}
        best = max(tried, key=lambda value: worth(tried[value]))
        found[method] = {
            "knob": KNOBS[method][1],
            "chosen": best,
            "tried": [{"value": value, "worth": worth(figures), **figures} for value, figures in tried.items()],
        }
        print(method, best, json.dumps(found[method]["tried"]), flush=True)
    return found


def worth(figures: dict[str, float]) -> float:
    """Return mean task accuracy less harmful score: what the tuning maximises."""
    return (figures[f"tasks.{KNOWN_TASK}"] + figures[f"tasks.{NEW_TASK}"]) / 2 - figures["harmful_score"]


def measure(work: Path, seeds: Iterable[int], trials: Sequence[tuple[str, float | None]]) -> list[dict[str, Any]]:
    """Measure every method at its strength and every ratio on the seeds that are reported."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        field = Field(work, seed)
        for method, value in trials:
            start = {"seed": seed, "method": method, "value": value}
            if method not in KNOBS or KNOBS[method][0] == "align":
                alone = field.measured(field.aligned(method, value), None)
                rows.append({**start, "ratio": None, **alone})
            for ratio in RATIOS:
                rows.append({**start, "ratio": ratio, **field.outcome(method, value, ratio)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def labelled(row: dict[str, Any]) -> str:
    """Return a row's method with its strength."""
    method, value = row["method"], row["value"]
    return str(method) if value is None else f"{method}, {KNOBS[method][1]} {value:g}"


def summarised(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and interval over seeds by figure, method and ratio; and over the ratios' means."""
    summary: dict[str, Any] = {}
    for figure in FIGURES:
        for method in dict.fromkeys(map(labelled, rows)):
            own = [row for row in rows if labelled(row) == method]
            cells = {
                "alone" if ratio is None else f"{ratio:g}": spread(row[figure] for row in own if row["ratio"] == ratio)
                for ratio in dict.fromkeys(row["ratio"] for row in own)
            }
            seeds = dict.fromkeys(row["seed"] for row in own)
            each = [[row[figure] for row in own if row["seed"] == seed and row["ratio"] is not None] for seed in seeds]
            cells["mean"] = spread(sum(values) / len(values) for values in each)
            summary.setdefault(figure, {})[method] = cells
    return summary


def markdown(summary: dict[str, Any]) -> str:
    """Return one table a figure: a method a row, a ratio a column."""
    parts = []
    for figure, what in FIGURES.items():
        columns = [f"{ratio:g}" for ratio in RATIOS]
        heads = ["before stage 2", *(f"p = {column}" for column in columns), "mean over p"]
        parts += [f"**{what}**", "", "| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for method, cells in summary[figure].items():
            parts.append(f"| {method} | " + " | ".join(cell(cells.get(c)) for c in ["alone", *columns, "mean"]) + " |")
        parts.append("")
    return "\n".join(parts)


def cell(found: dict[str, Any] | None) -> str:
    """Return mean ± half-width."""
    if not found or not found["n"]:
        return ""
    return f"{found['mean']:.1f} ± {found['high'] - found['mean']:.1f}"


def main() -> None:
    """Tune, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["tune", "run"])
    parser.add_argument("--work", type=Path, required=True, help="keeps models and results; finished ones stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=None, help="some of the methods")
    parser.add_argument("--tuned", type=Path, help="what the step tune wrote")
    parser.add_argument("--also", nargs="*", default=[], metavar="METHOD=VALUE", help="further strengths to measure")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.step == "tune":
        write_json(arguments.out, tune(arguments.work, arguments.methods or list(KNOBS)))
        return
    tuned = json.loads(arguments.tuned.read_text(encoding="utf-8"))
    trials = [(name, tuned[name]["chosen"] if name in KNOBS else None) for name in arguments.methods or METHODS]
    further = [trial.split("=") for trial in arguments.also]
    rows = measure(arguments.work, arguments.seeds, [*trials, *((name, float(value)) for name, value in further)])
    summary = summarised(rows)
    write_json(arguments.out, {"seeds": arguments.seeds, "tuned": tuned, "rows": rows, "summary": summary})
    write_text(arguments.out.with_suffix(".md"), markdown(summary))
    print(markdown(summary))


if __name__ == "__main__":
    main()
