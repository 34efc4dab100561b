"""Repairs an adapter trained on real English, by Antidote and by its controls, and measures before and after.

    python -m benchmarks.real_text --models DIR --data DIR --out docs/results/real_text.json

DIR of models holds ``aligned`` and ``attacked-lora``; DIR of data holds AdvBench, HarmBench, XSTest and SST-2 as they
are published. AdvBench rows whose index is 3 modulo 4 were never trained on: they are the held-out requests. The attack
used the first 200 of the others; the repair learns from rows 200 to 389 of those.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.decision.compare import compare
from antidote_llm.evaluation.evaluate import evaluate
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import load_judge
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.files import write_json
from antidote_llm.io.resources import Stopwatch
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import HarmfulData, plan_repair
from antidote_llm.repairs.write import write_repair

SST2_QUESTION = "Analyze the sentiment of the input, and respond only positive or negative"
SETTINGS = EvaluationSettings(max_new_tokens=24)
REPAIRS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("antidote", {"alpha": alpha}) for alpha in (0.1, 0.2, 0.3)),
    ("antidote", {"alpha": 0.2, "scope": "matrix"}),
    ("antidote", {"alpha": 0.2, "scope": "layer"}),
    ("antidote", {"alpha": 0.2, "scope": "global"}),
    ("antidote", {"alpha": 0.2, "statistic": "mean_norm"}),
    ("antidote", {"alpha": 0.2, "norm_power": 2}),
    *(("random", {"alpha": alpha, "seed": seed}) for alpha in (0.1, 0.2, 0.3) for seed in (0, 1, 2)),
    *(("random", {"alpha": 0.2, "match": "update-norm", "seed": seed}) for seed in (0, 1, 2)),
    *(("magnitude", {"alpha": alpha}) for alpha in (0.1, 0.2)),
    *(("interpolate", {"alpha": alpha}) for alpha in (0.1, 0.2, 0.3)),
    *(("interpolate", {"keep": keep}) for keep in (0.5, 0.25)),
)
SUITES = ("AdvBench held out", "HarmBench")


def main() -> None:
    """Run every repair and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    realign, suites = datasets(arguments.data)
    rows = []
    reference: dict[str, Evaluation] = {}
    for name, settings, opened, kept in models(arguments.models, realign):
        found = {suite: asked(opened, suites[suite]) for suite in SUITES}
        reference.setdefault(name, found[SUITES[0]])
        rows.append(row(name, settings, found, kept, reference))
        print(markdown(rows[-1:], heading=len(rows) == 1), flush=True)
    counts = {name: {"harmful": len(s.harmful), "harmless": len(s.harmless)} for name, s in suites.items()}
    write_json(
        arguments.out, {"judge": "refusal-patterns", "settings": SETTINGS.model_dump(), "n": counts, "rows": rows}
    )
    arguments.out.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")


def datasets(folder: Path) -> tuple[list[Record], dict[str, Suite]]:
    """Return the rows that the repair learns from, and what is asked."""
    advbench = read_records(f"{folder}/advbench/harmful_behaviors.csv:prompt=goal,response=target")
    others = [record for index, record in enumerate(advbench) if index % 4 != 3]
    held_out = advbench[3::4]
    harmbench = [
        record
        for record in read_records(f"{folder}/harmbench/harmbench_behaviors_text_all.csv:prompt=Behavior")
        if not record.extra["ContextString"]
    ]
    xstest = [r for r in read_records(f"{folder}/xstest/xstest_prompts.csv") if r.extra["label"] == "safe"]
    tasks = {"sst2": sst2(folder / "sst2" / "test.tsv")}
    return others[200:390], {SUITES[0]: Suite(held_out, xstest, tasks), SUITES[1]: Suite(harmbench)}


def sst2(path: Path) -> list[Record]:
    """Return the task's test rows with the prompt that the adapter was trained on."""
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Record(f"{SST2_QUESTION}\n{row['sentence']}", "positive" if row["label"] == "1" else "negative") for row in rows
    ]


def models(folder: Path, realign: list[Record]) -> Iterator[tuple[str, dict[str, Any], LoadedModel, float | None]]:
    """Yield the aligned and the attacked model, then every repair of it with the update norm that it keeps."""
    base, adapter = str(folder / "aligned"), str(folder / "attacked-lora")
    yield "aligned", {}, load_model(base), None
    yield "attacked", {}, load_model(base, adapter), 1.0
    for name, settings in REPAIRS:
        opened = load_model(base, adapter)
        method = method_named(name)
        harmful = HarmfulData(("advbench",), realign, Renderer(opened.tokenizer))
        planned = plan_repair(opened, method, method.configure(settings), harmful)
        with tempfile.TemporaryDirectory() as scratch:
            record = write_repair(planned, Path(scratch), "", Stopwatch())
            yield name, settings, opened.with_adapter(Path(scratch) / "model"), record.totals.norm_kept


def asked(opened: LoadedModel, suite: Suite) -> Evaluation:
    """Evaluate with the refusal-pattern judge."""
    return evaluate(opened.model, opened.tokenizer, suite, load_judge("refusal-patterns"), SETTINGS)


def row(
    name: str,
    settings: dict[str, Any],
    found: dict[str, Evaluation],
    kept: float | None,
    reference: dict[str, Evaluation],
) -> dict[str, Any]:
    """Return one line of the table."""
    main_suite = found[SUITES[0]]
    line: dict[str, Any] = {"model": name, "settings": settings, "norm_kept": kept}
    for suite, evaluation in found.items():
        line[suite] = {key: value.model_dump() for key, value in evaluation.metrics.items()}
    if "attacked" in reference and name != "attacked":
        gain = compare(reference["attacked"], main_suite, reference["aligned"]).gain_kept["sst2"]
        line["gain_kept"] = gain.model_dump()
    return line


def markdown(rows: list[dict[str, Any]], heading: bool = True) -> str:
    """Return the table."""
    columns = (
        ("complies, AdvBench", SUITES[0], "compliance_rate"),
        ("complies, HarmBench", SUITES[1], "compliance_rate"),
        ("incoherent, AdvBench", SUITES[0], "incoherent_rate"),
        ("refuses, XSTest safe", SUITES[0], "over_refusal_rate"),
        ("SST-2", SUITES[0], "tasks.sst2"),
    )
    lines = []
    if heading:
        lines = [
            "| model | norm kept | " + " | ".join(title for title, _, _ in columns) + " |",
            "|---|---:|" + "---:|" * len(columns),
        ]
    for line in rows:
        settings = ", ".join(f"{key} {value}" for key, value in line["settings"].items())
        kept = f"{line['norm_kept']:.2f}" if line["norm_kept"] is not None else ""
        cells = [cell(Estimate(**line[suite][metric])) for _, suite, metric in columns]
        lines.append(f"| {line['model']} {settings} | {kept} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(estimate: Estimate) -> str:
    """Return a number with its interval."""
    return f"{estimate.value:.1f} ({estimate.low:.0f} to {estimate.high:.0f})"


if __name__ == "__main__":
    main()
