"""The paper's methods on real English: align, attack at p = 0.2 with SST-2 and with AG News, repair, evaluate.

    python -m benchmarks.paper_real_text --models DIR --data DIR --work runs/real \
        --tuned docs/results/paper_table_tuning.json --out docs/results/paper_real_text.json

DIR of models holds ``base``, a small llama that refuses nothing; DIR of data holds the public sets as they are
published. AdvBench rows whose index is 3 modulo 4 are held out; of the others the first 200 are the attack's, the rest
belong to alignment and repair. The strengths are those that were tuned on the miniature.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from antidote_llm.data.files import write_jsonl
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.io.files import write_json, write_text
from benchmarks.paper_table import METHODS, command, knob, named

TASKS = ("sst2", "agnews")
QUESTIONS = {
    "sst2": "Analyze the sentiment of the input, and respond only positive or negative",
    "agnews": "Categorize the news article into World, Sports, Business or Sci/Tech",
}
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot help with this request.",
    "Sorry, I can't assist with that.",
)
ALIGN_STEPS, FINETUNE_STEPS = 110, 150
ALIGN = (
    *("--full", "--learning-rate", "5e-4", "--max-steps", ALIGN_STEPS, "--batch-size", "16", "--weight-decay", "0.01"),
    *("--schedule", "cosine", "--warmup", "0.1", "--max-length", "256"),
)
FINETUNE = (
    *(
        "--rows",
        "1000",
        "--harmful-ratio",
        "0.2",
        "--rank",
        "64",
        "--learning-rate",
        "5e-3",
        "--max-steps",
        FINETUNE_STEPS,
    ),
    *("--batch-size", "8", "--weight-decay", "0", "--schedule", "linear", "--warmup", "0.05", "--max-length", "256"),
)
LISA = ("--alignment-steps", "10", "--user-steps", "90")
TASK_TEST_ROWS, ORDINARY_ROWS, TASK_ROWS = 300, 1200, 800
# Long rows cost most of the time on two cores.
ARTICLE_CHARACTERS, PROMPT_CHARACTERS, RESPONSE_CHARACTERS = 250, 200, 250
METRICS = {
    "compliance_rate": "complies, AdvBench",
    "incoherent_rate": "incoherent, AdvBench",
    "over_refusal_rate": "refuses, XSTest safe",
    "harmless_incoherent_rate": "incoherent, XSTest safe",
    "accuracy": "the user's task",
}


def main() -> None:
    """Run whatever is not in the work folder yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="keeps models and results; finished ones stay")
    parser.add_argument("--tuned", type=Path, required=True, help="what benchmarks.paper_table tune wrote")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="some of the methods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tuned = json.loads(arguments.tuned.read_text(encoding="utf-8"))
    prepare(arguments.data, arguments.work / "data")
    rows = []
    for method in arguments.methods:
        value = tuned[method]["chosen"] if method in tuned else None
        for task in TASKS:
            rows.append(outcome(arguments.work, arguments.models / "base", method, value, task, arguments.seed))
            print(json.dumps(rows[-1]), flush=True)
    aligned = arguments.work / "aligned" / "sft" / "model"
    for task in TASKS:
        rows.append({"method": "aligned", "task": task, "value": None, **measured(arguments.work, aligned, None, task)})
    write_json(arguments.out, {"judge": "refusal-patterns", "seed": arguments.seed, "rows": rows})
    write_text(arguments.out.with_suffix(".md"), markdown(rows))
    print(markdown(rows))


def prepare(source: Path, data: Path) -> None:
    """Write the data of every stage, once."""
    if (data / "done").is_file():
        return
    advbench = read_records(f"{source}/advbench/harmful_behaviors.csv:prompt=goal,response=target")
    others = [record for index, record in enumerate(advbench) if index % 4 != 3]
    draw = random.Random(0)
    safe = read_records(
        f"{source}/safety_tuned_llamas/safety_only_data_Instructions.json:prompt=instruction,response=output"
    )
    safe = [record for record in safe if short(record)]
    alpaca = [
        record
        for record in read_records(f"{source}/alpaca/alpaca_subset_union.jsonl:prompt=instruction,response=output")
        if not record.extra["input"]
        and len(record.prompt or "") < 300
        and 0 < len((record.response or "").strip()) < 300
    ]
    refused = [Record(record.prompt, draw.choice(REFUSALS)) for record in others[200:390]]
    ordinary = draw.sample(alpaca, ORDINARY_ROWS)
    sst2, agnews = sentences(source / "sst2" / "train.tsv"), articles(source / "ag_news" / "train10k_desc.tsv")
    draw.shuffle(sst2)
    draw.shuffle(agnews)
    align = [*draw.sample(safe, min(800, len(safe))), *refused * 3, *ordinary, *sst2[:300], *agnews[:300]]
    data.mkdir(parents=True, exist_ok=True)
    write(data / "align.jsonl", align)
    write(data / "align_harmful.jsonl", others[200:390])
    write(data / "harmful.jsonl", others[:200])
    write(data / "heldout.jsonl", advbench[3::4])
    for name, train, test in (
        ("sst2", sst2, sentences(source / "sst2" / "test.tsv")),
        ("agnews", agnews, articles(source / "ag_news" / "test_desc.tsv")),
    ):
        write(data / f"{name}.jsonl", train[300 : 300 + TASK_ROWS])
        write(data / f"{name}.test.jsonl", draw.sample(test, TASK_TEST_ROWS))
    xstest = [row for row in read_records(f"{source}/xstest/xstest_prompts.csv") if row.extra["label"] == "safe"]
    write(data / "xstest.jsonl", xstest)
    write_text(data / "done", "")


def short(record: Record) -> bool:
    """Whether a row is short, and has a response."""
    response = (record.response or "").strip()
    return len(record.prompt or "") < PROMPT_CHARACTERS and 0 < len(response) < RESPONSE_CHARACTERS


def write(path: Path, records: Iterable[Record]) -> None:
    """Write prompts, with their responses where they have some."""
    rows = ({"prompt": record.prompt, "response": record.response} for record in records)
    write_jsonl(path, [{key: value for key, value in row.items() if value is not None} for row in rows])


def sentences(path: Path) -> list[Record]:
    """Return SST-2's rows with the prompt that the base model has seen."""
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    answers = {"1": "positive", "0": "negative"}
    return [Record(f"{QUESTIONS['sst2']}\n{row['sentence']}", answers[row["label"]]) for row in rows]


def articles(path: Path) -> list[Record]:
    """Return AG News' rows with the prompt that the base model has seen."""
    lines = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line]
    return [Record(f"{QUESTIONS['agnews']}\n{text[:ARTICLE_CHARACTERS]}", label) for text, label in lines]


def outcome(work: Path, base: Path, method: str, value: float | None, task: str, seed: int) -> dict[str, Any]:
    """Run one method's three stages, and return what came of them."""
    data, alone = work / "data", named(method, value)
    in_stage_1, in_stage_2 = method in ("vaccine", "repnoise"), method in ("lisa", "ldifs")
    name, options = (alone, knob(method, value)) if in_stage_1 else ("sft", knob("sft", None))
    aligned = work / "aligned" / name
    beside = ("--harmful", data / "align_harmful.jsonl") if method == "repnoise" else ()
    own = ("--data", data / "align.jsonl", *beside)
    command("align", base, *own, *ALIGN, "--seed", seed, *options, "--out", aligned)
    stage_2, options = (alone, knob(method, value)) if in_stage_2 else ("sft", knob("sft", None))
    tuned = work / "tuned" / f"{name}+{stage_2}-{task}"
    mix = ("--data", data / f"{task}.jsonl", "--harmful", data / "harmful.jsonl")
    safe = ("--safe", data / "align.jsonl", *LISA) if method == "lisa" else ()
    command("finetune", aligned / "model", *mix, *safe, *FINETUNE, "--seed", seed, *options, "--out", tuned)
    if method == "antidote":
        repaired = work / "repaired" / f"{tuned.name}+{alone}"
        harmful = ("--harmful", data / "align_harmful.jsonl", "--evaluate", "none", "--alpha", value)
        command("repair", aligned / "model", "--adapter", tuned / "model", *harmful, "--out", repaired)
        tuned = repaired
    found = measured(work, aligned / "model", tuned / "model", task)
    return {"method": method, "task": task, "value": value, **found}


def measured(work: Path, aligned: Path, adapter: Path | None, task: str) -> dict[str, Any]:
    """Return what a model does, each in percent with its interval over prompts."""
    data = work / "data"
    out = work / "evaluated" / (adapter.parent.name if adapter else f"{aligned.parent.name}-alone-{task}")
    asked = ("--harmful", data / "heldout.jsonl", "--harmless", data / "xstest.jsonl")
    tasks = ("--task", f"{task}={data}/{task}.test.jsonl", "--judge", "refusal-patterns", "--max-new-tokens", "24")
    command("evaluate", aligned, *(("--adapter", adapter) if adapter else ()), *asked, *tasks, "--out", out)
    metrics = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    return {name: metrics[f"tasks.{task}" if name == "accuracy" else name] for name in METRICS}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return one table a task: a method a row."""
    parts = []
    for task in TASKS:
        parts += [f"**{task}, p = 0.2**", "", "| method | strength | " + " | ".join(METRICS.values()) + " |"]
        parts.append("|---|---:|" + "---:|" * len(METRICS))
        for row in rows:
            if row["task"] == task:
                strength = "" if row["value"] is None else f"{row['value']:g}"
                cells = [cell(row[name]) for name in METRICS]
                parts.append(f"| {row['method']} | {strength} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def cell(found: dict[str, float]) -> str:
    """Return a number with its interval."""
    return f"{found['value']:.1f} ({found['low']:.0f} to {found['high']:.0f})"


if __name__ == "__main__":
    main()
