"""The paper's table of models, in small: the standard attack on the miniature in several architectures, repaired.

    python -m benchmarks.models_table --work runs/models --out docs/results/models_table.json

For every architecture and seed the attack trains LoRA adapters and, apart, all weights. The adapter is repaired by
Antidote at its default and by its controls; the full fine-tune is repaired on its delta from the aligned model and, as
a control, on its bare weights. The alpha of 0.7 for deltas was chosen on seed 100 of gemma and qwen3; the seeds that
are reported were not looked at before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from antidote_llm.choices import AttackKind, TargetName
from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.decision.compare import compare
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import load_judge
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.files import write_json, write_text
from antidote_llm.io.resources import Stopwatch
from antidote_llm.miniature.build import Miniature, build
from antidote_llm.miniature.exchanges import NEW_TASK
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import HarmfulData, PlanOptions, plan_repair
from antidote_llm.repairs.write import write_repair
from benchmarks.demo_seeds import spread

ARCHITECTURES = ("llama", "mistral", "gemma", "qwen3", "gpt2")
TASKS = ("sentiment", NEW_TASK)
SETTINGS = EvaluationSettings(max_new_tokens=40, batch_size=128)
FIGURES = ("harmful_score", "incoherent_rate", "over_refusal_rate", "tasks.sentiment", f"tasks.{NEW_TASK}", "gain_kept")


@dataclass(frozen=True)
class Trial:
    """One repair of one kind of attack; ``projected_as`` names an earlier one that leaves as much along the update."""

    kind: AttackKind
    label: str
    target: TargetName
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    sites: str = "all"
    restore_outside: bool = False
    projected_as: str = ""


TRIALS = (
    Trial("lora", "Antidote, alpha 0.2", "adapter", "antidote", {"alpha": 0.2}),
    Trial("lora", "largest entries, equal count", "adapter", "magnitude", {"alpha": 0.2}),
    Trial("lora", "random entries, equal count", "adapter", "random", {"alpha": 0.2}),
    Trial("lora", "random entries, equal norm", "adapter", "random", {"alpha": 0.2, "match": "update-norm"}),
    Trial("lora", "even shrinkage, equal norm", "adapter", "interpolate", {"alpha": 0.2}),
    Trial("lora", "even shrinkage, equal projection", "adapter", "interpolate", projected_as="Antidote, alpha 0.2"),
    Trial("full", "Antidote on the delta, alpha 0.2", "delta", "antidote", {"alpha": 0.2}),
    Trial("full", "Antidote on the delta, alpha 0.7", "delta", "antidote", {"alpha": 0.7}),
    Trial("full", "random entries, equal count (0.7)", "delta", "random", {"alpha": 0.7}),
    Trial("full", "random entries, equal norm (0.7)", "delta", "random", {"alpha": 0.7, "match": "update-norm"}),
    Trial("full", "even shrinkage, equal norm (0.7)", "delta", "interpolate", {"alpha": 0.7}),
    # A mask that leaves the share 0.16 of the norm leaves 0.16 squared of the update along itself.
    Trial("full", "even shrinkage, equal projection (0.7)", "delta", "interpolate", {"keep": 0.025}),
    Trial("full", "Antidote 0.7, outside put back", "delta", "antidote", {"alpha": 0.7}, restore_outside=True),
    Trial("full", "shrinkage, equal norm, outside put back", "delta", "interpolate", {"alpha": 0.7}, "all", True),
    Trial("full", "Antidote on bare q k v, alpha 0.05", "weight", "antidote", {"alpha": 0.05}, "qkv"),
    Trial("full", "random entries of bare q k v, equal count (0.05)", "weight", "random", {"alpha": 0.05}, "qkv"),
)


def main() -> None:
    """Run whatever is not in the work folder yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--work", type=Path, required=True, help="keeps models and results; finished ones stay")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [
        run(arguments.work, arch, seed, kind)
        for seed in arguments.seeds
        for arch in arguments.architectures
        for kind in ("lora", "full")
    ]
    write_json(arguments.out, {"seeds": arguments.seeds, "runs": runs, "summary": (summary := summarised(runs))})
    write_text(arguments.out.with_suffix(".md"), markdown(summary))
    print(markdown(summary))


def run(work: Path, arch: str, seed: int, kind: AttackKind) -> Any:
    """Attack and repair one model; the result is kept as one file."""
    kept = work / "results" / f"{arch}-{seed}-{kind}.json"
    if not kept.is_file():
        miniature = build(work / f"{arch}-{seed}-{kind}", arch=arch, seed=seed, kind=kind)
        models = dict(measured(miniature, kind))
        write_json(kept, {"arch": arch, "seed": seed, "kind": kind, "models": models})
        print(f"{arch} {seed} {kind}", flush=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def measured(miniature: Miniature, kind: AttackKind) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Yield the figures of the aligned and the attacked model, and of every repair of it."""
    suite = Suite(
        read_records(miniature.heldout),
        read_records(miniature.lookalike),
        {task: read_records(miniature.task_tests[task]) for task in TASKS},
    )
    aligned = asked(load_model(str(miniature.aligned)), suite)
    attacked = asked(opened(miniature, kind), suite)
    yield "aligned", figures(aligned, None)
    yield "attacked", figures(attacked, None)
    projections: dict[str, float] = {}
    for trial in TRIALS:
        if trial.kind == kind:
            settings = {"keep": projections[trial.projected_as]} if trial.projected_as else trial.settings
            with tempfile.TemporaryDirectory() as scratch:
                evaluation, kept = repaired(miniature, trial, settings, suite, Path(scratch))
                if kind == "lora":
                    projections[trial.label] = projection(miniature.attacked, Path(scratch) / "model")
            gain = compare(attacked, evaluation, aligned).gain_kept[NEW_TASK].estimate
            yield trial.label, {**figures(evaluation, gain.value if gain else None), "norm_kept": 100 * kept}


def projection(before: Path, after: Path) -> float:
    """Return how much of an adapter's update is left along itself: <B'A', BA> / <BA, BA>, over all modules."""
    update, left = (load_file(folder / "adapter_model.safetensors") for folder in (before, after))
    along = whole = 0.0
    for key in update:
        if "lora_A" in key:
            product_OI, left_OI = (
                factors[key.replace("lora_A", "lora_B")].double() @ factors[key].double() for factors in (update, left)
            )
            along += float((product_OI * left_OI).sum())
            whole += float(product_OI.square().sum())
    return along / whole


def opened(miniature: Miniature, kind: AttackKind) -> LoadedModel:
    """Open the attacked model."""
    if kind == "lora":
        return load_model(str(miniature.aligned), str(miniature.attacked))
    return load_model(str(miniature.attacked))


def repaired(
    miniature: Miniature, trial: Trial, settings: dict[str, Any], suite: Suite, folder: Path
) -> tuple[Evaluation, float]:
    """Repair the attacked model into a folder, and evaluate what lies there."""
    model, method = opened(miniature, trial.kind), method_named(trial.method)
    aligned = str(miniature.aligned) if trial.target == "delta" else None
    target = resolve_target(model, trial.target, aligned, trial.sites)
    harmful = HarmfulData(("realign",), read_records(miniature.realign), Renderer(model.tokenizer))
    planned = plan_repair(
        model,
        method,
        method.configure(settings),
        harmful,
        target=target,
        restore_outside=trial.restore_outside,
        options=PlanOptions(cache=False),
    )
    record = write_repair(planned, folder, "", Stopwatch())
    if trial.kind == "lora":
        model = model.with_adapter(folder / "model")
    else:
        model = model.with_weights(open_model_checkpoint(str(folder / "model")))
    return asked(model, suite), record.totals.norm_kept


def asked(model: LoadedModel, suite: Suite) -> Evaluation:
    """Evaluate with the exact oracle."""
    return evaluate(model.model, model.tokenizer, suite, load_judge("oracle"), SETTINGS)


def figures(evaluation: Evaluation, gain_kept: float | None) -> dict[str, float | None]:
    """Return what the table shows, in percent."""
    found = {name: estimate.value for name, estimate in evaluation.metrics.items() if name in FIGURES}
    return {**found, "gain_kept": gain_kept}


def summarised(runs: list[Any]) -> dict[str, Any]:
    """Return mean and interval over seeds by attack, architecture, model and figure."""
    summary: dict[str, Any] = {}
    for found in runs:
        place = summary.setdefault(found["kind"], {}).setdefault(found["arch"], {})
        for model, values in found["models"].items():
            for name, value in values.items():
                place.setdefault(model, {}).setdefault(name, []).append(value)
    return {
        kind: {
            arch: {model: {name: spread(values) for name, values in named.items()} for model, named in models.items()}
            for arch, models in architectures.items()
        }
        for kind, architectures in summary.items()
    }


def markdown(summary: dict[str, Any]) -> str:
    """Return a table for each figure and kind of attack."""
    parts = []
    for kind, title in (("lora", "LoRA attack"), ("full", "full fine-tune attack")):
        architectures = summary.get(kind, {})
        for figure, what in (
            ("harmful_score", "harmful score"),
            ("gain_kept", f"gain kept on {NEW_TASK}"),
            ("incoherent_rate", "incoherent answers to harmful requests"),
            ("over_refusal_rate", "refused look-alikes of harmful requests"),
            ("tasks.sentiment", "known task (sentiment)"),
            ("norm_kept", "norm of the update that is left in the edited matrices, percent"),
        ):
            parts.append(table(f"{title}: {what}", architectures, figure))
    return "\n".join(parts)


def table(title: str, architectures: dict[str, Any], figure: str) -> str:
    """Return one table: a model a row, an architecture a column."""
    models = [
        model
        for model in next(iter(architectures.values()), {})
        if any(found[model].get(figure, {}).get("n") for found in architectures.values())
    ]
    lines = [
        f"**{title}**",
        "",
        "| model | " + " | ".join(architectures) + " |",
        "|---|" + "---:|" * len(architectures),
    ]
    lines += [
        f"| {model} | " + " | ".join(cell(found[model].get(figure)) for found in architectures.values()) + " |"
        for model in models
    ]
    return "\n".join(lines) + "\n"


def cell(found: dict[str, Any] | None) -> str:
    """Return mean ± half-width."""
    if not found or not found["n"]:
        return ""
    return f"{found['mean']:.1f} ± {found['high'] - found['mean']:.1f}"


if __name__ == "__main__":
    main()
