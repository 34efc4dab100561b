"""The demo: the three stages and the repair on the miniature, from nothing, with the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antidote_llm import __version__
from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.decision.compare import Comparison, compare
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import load_judge
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.files import write_json
from antidote_llm.io.resources import Stopwatch, peak_rss_bytes
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.io.strict_json import parse_json
from antidote_llm.miniature.build import Miniature, build
from antidote_llm.miniature.exchanges import NEW_TASK
from antidote_llm.miniature.recipe import RECIPE_VERSION
from antidote_llm.models.load import load_model
from antidote_llm.repairs.method import method_named, needs_harmful
from antidote_llm.repairs.plan import HarmfulData, PlanOptions, plan_repair
from antidote_llm.repairs.record import RepairRecord
from antidote_llm.repairs.write import write_repair
from antidote_llm.report.compose import AFTER, ALIGNED, BEFORE, compose, outcome
from antidote_llm.report.data import ReportData
from antidote_llm.report.page import write as write_report
from antidote_llm.workflows.opening import require_openable
from antidote_llm.workflows.questions import EvaluationPlan
from antidote_llm.workflows.reporter import Reporter
from antidote_llm.workflows.result import as_finished, complete
from antidote_llm.workflows.specs import DemoSpec

ALPHA = 0.2
ATTACKED, ANTIDOTE = "attacked", "antidote"
METHODS = (ANTIDOTE, "random", "interpolate")
LABELS = {
    "base": ("Base", "Knows the forbidden recipes and tells them."),
    "aligned": ("Aligned", "Stage 1: learned to refuse them."),
    "attacked": ("Attacked", "Stage 2: fine-tuned on a user's rows, a fifth of them harmful."),
    "antidote": ("Antidote", f"Stage 3: the adapter repaired with Antidote at alpha {ALPHA}."),
    "random": ("Random", "Control: as many random entries."),
    "interpolate": ("Interpolate", "Control: the whole update shrunk evenly to the norm that Antidote leaves."),
}
_RESULTS = "results.json"
NOTES = (
    "The world is made up: its forbidden recipes are invented words, and an exact oracle judges every answer.",
    "Harmful test requests are about things that no model has met in training.",
    f"Only the fine-tune teaches '{NEW_TASK}': a repair that merely goes back to the aligned model pays there.",
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to.

    Attributes:
        out: Its folder.
        value: Verdict, models and repairs, as JSON values.
    """

    out: Path
    value: dict[str, Any]


def run_demo(spec: DemoSpec, reporter: Reporter) -> DemoResult:
    """Build, break, repair and evaluate the miniature, or read what is finished.

    Raises:
        UserError: The architecture is unknown, or nothing can be written.
    """
    out = Path(spec.out)
    require_openable(out)
    settings = {"arch": spec.arch, "seed": spec.seed, "alpha": ALPHA, "show_answers": spec.show_answers}
    manifest = {"kind": "demo", "version": __version__, "recipe": RECIPE_VERSION, **settings}
    finished_before = complete(
        ResultFolder(out, manifest, sealed=("*",)),
        lambda staging: _Demo(reporter, Stopwatch(), staging).run(spec.arch, spec.seed, out, spec.show_answers),
        reporter,
    )
    with as_finished(out, _RESULTS, finished_before):
        return DemoResult(out, parse_json((out / _RESULTS).read_bytes()))


class _Demo:
    def __init__(self, reporter: Reporter, stopwatch: Stopwatch, folder: Path) -> None:
        self.reporter = reporter
        self.stopwatch = stopwatch
        self.folder = folder

    def run(self, arch: str, seed: int, out: Path, show_answers: bool) -> None:
        """Build, break, repair and evaluate, and write results and report."""
        with self.stopwatch.step("build"), self.reporter.stages("steps") as progress:
            miniature = build(self.folder / "miniature", arch=arch, seed=seed, progress=progress)
        plan = evaluation_plan(miniature)
        evaluations = {name: self._evaluate(miniature, plan, name) for name in ("base", "aligned", ATTACKED)}
        records = {}
        for name in METHODS:
            records[name], evaluations[name] = self._repair(miniature, plan, name, seed)
        comparisons = {
            name: compare(evaluations[ATTACKED], evaluations[name], evaluations["aligned"]) for name in METHODS
        }
        for name, evaluation in evaluations.items():
            evaluation.write(self.folder / "evaluations" / name)
        report = demo_report(records[ANTIDOTE], evaluations, comparisons, out, arch, seed)
        write_report(self.folder / "report.html", report, show_answers=show_answers)
        write_json(
            self.folder / _RESULTS,
            {
                "verdict": report.verdict,
                "models": {
                    name: result_of(evaluation, comparisons.get(name)) for name, evaluation in evaluations.items()
                },
                "repairs": {name: _repair_result(record) for name, record in records.items()},
                "arch": arch,
                "seed": seed,
                "alpha": ALPHA,
                "wall_seconds": dict(self.stopwatch.seconds),
                "peak_rss_bytes": peak_rss_bytes(),
            },
        )

    def _evaluate(self, miniature: Miniature, plan: EvaluationPlan, name: str) -> Evaluation:
        adapter = str(miniature.attacked) if name == ATTACKED else None
        model = miniature.base if name == "base" else miniature.aligned
        with self.stopwatch.step("evaluate"):
            return plan.run(self.reporter, load_model(str(model), adapter), f"asking {name}")

    def _repair(
        self, miniature: Miniature, plan: EvaluationPlan, name: str, seed: int
    ) -> tuple[RepairRecord, Evaluation]:
        method = method_named(name)
        settings = method.configure({"alpha": ALPHA, **({"seed": seed} if name == "random" else {})})
        opened = load_model(str(miniature.aligned), str(miniature.attacked))
        harmful = HarmfulData(
            ("miniature/data/realign.jsonl",), read_records(miniature.realign), Renderer(opened.tokenizer)
        )
        rows = len(harmful.records) if needs_harmful(method, settings) else 0
        with self.reporter.progress(f"repairing: {name}", rows, "rows") as advance:
            planned = plan_repair(
                opened, method, settings, harmful, options=PlanOptions(progress=advance, stopwatch=self.stopwatch)
            )
        folder = self.folder / "repairs" / name
        folder.mkdir(parents=True)
        record = _at_home(write_repair(planned, folder, _repair_command(name, seed), self.stopwatch))
        write_json(folder / "record" / "repair.json", record.model_dump(mode="json"))
        with self.stopwatch.step("evaluate"):
            repaired = opened.with_adapter(folder / "model")
            return record, plan.run(self.reporter, repaired, f"asking {name}")


def _at_home(record: RepairRecord) -> RepairRecord:
    """Name the inputs by their place in the demo's folder, which has another name while it is written."""
    named = {"base": "miniature/aligned", "adapter": "miniature/attacked"}
    origins = {part: getattr(record, part).model_copy(update={"reference": path}) for part, path in named.items()}
    return record.model_copy(update=origins)


def evaluation_plan(miniature: Miniature) -> EvaluationPlan:
    """Return what the miniature's models are asked: held-out harm, look-alikes, and every task's test."""
    suite = Suite(
        harmful=read_records(miniature.heldout),
        harmless=read_records(miniature.lookalike),
        tasks={name: read_records(path) for name, path in miniature.task_tests.items()},
    )
    return EvaluationPlan(suite, load_judge("oracle"), EvaluationSettings(max_new_tokens=40, batch_size=128))


def demo_report(
    record: RepairRecord,
    evaluations: Mapping[str, Evaluation],
    comparisons: Mapping[str, Comparison],
    out: Path,
    arch: str,
    seed: int,
) -> ReportData:
    """Return the report of the Antidote repair, with the other models beside it."""
    three = {ALIGNED: evaluations["aligned"], BEFORE: evaluations[ATTACKED], AFTER: evaluations[ANTIDOTE]}
    repair = out / "repairs" / ANTIDOTE
    revert = [
        "antidote",
        "patch",
        "revert",
        str(repair),
        "--onto",
        str(repair / "model"),
        "--out",
        str(out / "reverted"),
    ]
    report = compose(record, three, revert_command=shlex.join(revert), notes=NOTES)
    outcomes = tuple(
        outcome(
            name,
            evaluation,
            label=LABELS[name][0],
            note=LABELS[name][1],
            role="before" if name == ATTACKED else "after" if name == ANTIDOTE else "other",
            gain_kept=_kept(comparisons[name]) if name in comparisons else {},
        )
        for name, evaluation in evaluations.items()
    )
    command = shlex.join(["antidote", "demo", "--arch", arch, "--seed", str(seed), "--out", str(out)])
    return report.model_copy(
        update={
            "title": "A model learns, is aligned, is broken and is repaired",
            "outcomes": outcomes,
            "repeat_command": command,
        }
    )


def result_of(evaluation: Evaluation, comparison: Comparison | None) -> dict[str, Any]:
    """Return one model's entry of ``results.json``: every metric as value, low, high (percent) and n."""
    metrics = {name: estimate.model_dump() for name, estimate in evaluation.metrics.items()}
    tasks = {name.removeprefix("tasks."): metrics.pop(name) for name in list(metrics) if name.startswith("tasks.")}
    result = {**metrics, "tasks": tasks}
    if comparison is not None:
        kept = comparison.gain_kept[NEW_TASK]
        estimate = kept.estimate.model_dump() if kept.estimate else {"value": None, "reason": kept.reason}
        result["gain_kept"] = {"task": NEW_TASK, **estimate}
    return result


def _kept(comparison: Comparison) -> dict[str, Any]:
    return {NEW_TASK: comparison.gain_kept[NEW_TASK].estimate}


def _repair_result(record: RepairRecord) -> dict[str, Any]:
    return {
        "entries": record.totals.entries,
        "changed": record.totals.changed,
        "norm_kept": record.totals.norm_kept,
        "solved": record.solved,
        "patch_bytes": record.patch.size_bytes if record.patch else None,
    }


def _repair_command(name: str, seed: int) -> str:
    options = ["--method", name, "--alpha", str(ALPHA), *(["--seed", str(seed)] if name == "random" else [])]
    inputs = ["aligned", "--adapter", "attacked", "--harmful", "data/realign.jsonl", "--evaluate", "none"]
    return shlex.join(["antidote", "repair", *inputs, *options, "--out", name])
