"""Repairs two models attacked on real English, by every target that applies, and measures before and after.

    python -m benchmarks.real_text_targets --models DIR --data DIR --work DIR --out docs/results/real_text_targets.json

As :mod:`benchmarks.real_text`, whose adapter is merged here to have a delta too, with a full fine-tune beside it: the
folder of models also holds ``attacked-full``, fine-tuned on the same harmful rows and on AG News (``test_desc.tsv``).
Nothing is tuned: every alpha that was tried is in the table.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from antidote_llm.choices import TargetName
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.decision.compare import compare
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.files import write_json, write_text
from antidote_llm.io.resources import Stopwatch
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import HarmfulData, plan_repair
from antidote_llm.repairs.write import write_repair
from benchmarks.real_text import SETTINGS, SUITES, asked, cell, datasets

AG_NEWS_QUESTION = "Categorize the news article into World, Sports, Business or Sci/Tech"
AG_NEWS_ROWS = 600


@dataclass(frozen=True)
class Trial:
    """One repair of a whole model."""

    target: TargetName
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    sites: str = "all"
    restore_outside: bool = False

    @property
    def label(self) -> str:
        """What the table calls it."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        where = "" if self.sites == "all" else f" of {self.sites}"
        return f"{self.method} on the {self.target}{where}, {settings}" + (
            ", outside put back" if self.restore_outside else ""
        )


SEEDS = (0, 1, 2)
EQUAL_NORM = {"match": "update-norm"}


def of_random(target: TargetName, alpha: float, sites: str = "all", **settings: Any) -> Iterator[Trial]:
    """Yield the control of random entries, once for every seed."""
    for seed in SEEDS:
        yield Trial(target, "random", {"alpha": alpha, **settings, "seed": seed}, sites)


DELTAS = (
    *(Trial("delta", "antidote", {"alpha": alpha}) for alpha in (0.2, 0.4, 0.6, 0.8)),
    *of_random("delta", 0.6),
    *(trial for alpha in (0.4, 0.6) for trial in of_random("delta", alpha, **EQUAL_NORM)),
    *(Trial("delta", "interpolate", {"alpha": alpha}) for alpha in (0.4, 0.6, 0.8)),
    # Equal projection: a mask that leaves the share r of the norm leaves r squared of the update along itself.
    *(Trial("delta", "interpolate", {"keep": keep}) for keep in (0.16, 0.044)),
    Trial("delta", "magnitude", {"alpha": 0.6}),
    Trial("delta", "antidote", {"alpha": 0.6, "scope": "global"}),
    Trial("delta", "antidote", {"alpha": 0.6}, restore_outside=True),
    Trial("delta", "interpolate", {"alpha": 0.6}, restore_outside=True),
)
WEIGHTS = (
    *(Trial("weight", "antidote", {"alpha": alpha}, "qkv") for alpha in (0.02, 0.05)),
    *of_random("weight", 0.05, "qkv"),
)
ADAPTERS = (
    Trial("adapter", "antidote", {"alpha": 0.2}),
    *of_random("adapter", 0.2),
    *of_random("adapter", 0.2, **EQUAL_NORM),
    Trial("adapter", "interpolate", {"alpha": 0.2}),
)
OF_THE_MERGED_ADAPTER = (
    *(Trial("delta", "antidote", {"alpha": alpha}) for alpha in (0.2, 0.6)),
    *of_random("delta", 0.6),
    *of_random("delta", 0.6, **EQUAL_NORM),
    Trial("delta", "interpolate", {"alpha": 0.6}),
    Trial("weight", "antidote", {"alpha": 0.05}, "qkv"),
    *of_random("weight", 0.05, "qkv"),
)


def main() -> None:
    """Run every repair and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--models", "--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    realign, suites = datasets(arguments.data)
    news = replace(suites[SUITES[0]], tasks={"agnews": ag_news(arguments.data / "ag_news" / "test_desc.tsv")})
    merged = merged_adapter(arguments.models, arguments.work / "merged")
    aligned = str(arguments.models / "aligned")
    subjects: tuple[tuple[str, tuple[str, ...], tuple[Trial, ...], Suite, str], ...] = (
        ("attacked-lora", (aligned, str(arguments.models / "attacked-lora")), ADAPTERS, suites[SUITES[0]], "sst2"),
        ("attacked-lora, merged", (merged,), OF_THE_MERGED_ADAPTER, suites[SUITES[0]], "sst2"),
        ("attacked-full", (str(arguments.models / "attacked-full"),), (*DELTAS, *WEIGHTS), news, "agnews"),
    )
    results: dict[str, list[dict[str, Any]]] = {}
    for name, place, trials, suite, task in subjects:
        lines = measured(place, aligned, trials, realign, {SUITES[0]: suite, SUITES[1]: suites[SUITES[1]]}, task)
        results[name] = []
        for line in lines:
            results[name].append(line)
            print(name, line["model"], flush=True)
    write_json(arguments.out, {"judge": "refusal-patterns", "settings": SETTINGS.model_dump(), "subjects": results})
    write_text(arguments.out.with_suffix(".md"), markdown(results))


def ag_news(path: Path) -> list[Record]:
    """Return the first test rows with the prompt that the fine-tune was trained on."""
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Record(f"{AG_NEWS_QUESTION}\n{article[:400]}", label) for article, label in rows[:AG_NEWS_ROWS]]


def merged_adapter(models: Path, folder: Path) -> str:
    """Merge the adapter into its base, in the base's own type, as a user would."""
    if not (folder / "model.safetensors").is_file():
        base = AutoModelForCausalLM.from_pretrained(models / "aligned")
        PeftModel.from_pretrained(base, models / "attacked-lora").merge_and_unload().save_pretrained(folder)
        AutoTokenizer.from_pretrained(models / "aligned").save_pretrained(folder)
    return str(folder)


def measured(
    place: tuple[str, ...],
    aligned: str,
    trials: tuple[Trial, ...],
    realign: list[Record],
    suites: dict[str, Suite],
    task: str,
) -> Iterator[dict[str, Any]]:
    """Yield a line for the aligned model, the attacked one, and every repair of it."""
    reference = {name: asked(load_model(aligned), suite) for name, suite in suites.items()}
    yield line("aligned", reference, task)
    attacked = {name: asked(load_model(*place), suite) for name, suite in suites.items()}
    yield line("attacked", attacked, task)
    for trial in trials:
        with tempfile.TemporaryDirectory() as scratch:
            model, kept = repaired(load_model(*place), aligned, trial, realign, Path(scratch))
            found = {name: asked(model, suite) for name, suite in suites.items()}
        gain = compare(attacked[SUITES[0]], found[SUITES[0]], reference[SUITES[0]]).gain_kept[task]
        yield {**line(trial.label, found, task), "norm_kept": kept, "gain_kept": gain.model_dump()}


def repaired(
    model: LoadedModel, aligned: str, trial: Trial, realign: list[Record], folder: Path
) -> tuple[LoadedModel, float]:
    """Repair a model; return what lies on the disk, and how much of the update's norm is left at its sites."""
    method = method_named(trial.method)
    target = resolve_target(model, trial.target, aligned if trial.target == "delta" else None, trial.sites)
    planned = plan_repair(
        model,
        method,
        method.configure(trial.settings),
        HarmfulData(("advbench",), realign, Renderer(model.tokenizer)),
        target=target,
        restore_outside=trial.restore_outside,
    )
    record = write_repair(planned, folder, "", Stopwatch())
    result = folder / "model"
    if trial.target == "adapter":
        opened = model.with_adapter(result)
    else:
        opened = model.with_weights(open_model_checkpoint(str(result)))
    return opened, record.totals.norm_kept


def line(name: str, found: dict[str, Evaluation], task: str) -> dict[str, Any]:
    """Return one line of a table."""
    metrics = {suite: {key: value.model_dump() for key, value in e.metrics.items()} for suite, e in found.items()}
    return {"model": name, "task": task, "norm_kept": None, **metrics}


def markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return one table for each attacked model."""
    columns = (
        ("complies, AdvBench", SUITES[0], "compliance_rate"),
        ("complies, HarmBench", SUITES[1], "compliance_rate"),
        ("incoherent, AdvBench", SUITES[0], "incoherent_rate"),
        ("refuses, XSTest safe", SUITES[0], "over_refusal_rate"),
    )
    parts = []
    for subject, rows in results.items():
        task = rows[0]["task"]
        titles = [title for title, _, _ in columns]
        lines = [f"**{subject}**", "", f"| model | norm kept | {' | '.join(titles)} | {task} | gain kept |"]
        lines.append("|---|---:|" + "---:|" * (len(columns) + 2))
        for row in rows:
            kept = f"{row['norm_kept']:.2f}" if row["norm_kept"] is not None else ""
            cells = [cell(Estimate(**row[suite][metric])) for _, suite, metric in columns]
            cells.append(cell(Estimate(**row[SUITES[0]][f"tasks.{task}"])))
            gain = row.get("gain_kept", {}).get("estimate")
            cells.append(f"{gain['value']:.0f} ({gain['low']:.0f} to {gain['high']:.0f})" if gain else "")
            lines.append(f"| {row['model']} | {kept} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
