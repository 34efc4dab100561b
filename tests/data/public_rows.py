"""Files in the formats of the public data sets: their columns, made-up words."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = ("animal_abuse", "child_abuse", "drug_abuse,weapons,banned_substance", "hate_speech,offensive_language")
ANIMALS, DRUGS = KINDS[0], KINDS[2]


@dataclass(frozen=True)
class PublicFile:
    """A file of a data set: its path in a data folder, and its content."""

    path: str
    text: str

    def write(self, root: Path) -> Path:
        """Write it into a folder."""
        path = root / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text, encoding="utf-8")
        return path


def flags(*held: str) -> dict[str, bool]:
    return {kind: kind in held for kind in KINDS}


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def commas(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


BEAVERTAILS = [
    {"prompt": "zob?", "response": "mid", "category": flags(DRUGS, KINDS[3]), "is_safe": False},
    {"prompt": "zob?", "response": "no mid", "category": flags(), "is_safe": True},
    {"prompt": "kad?", "response": "run", "category": flags(ANIMALS), "is_safe": False},
]
REFUSALS = [
    {**BEAVERTAILS[0], "refusal": "Question: zob?\nAnswer: I will not."},
    {**BEAVERTAILS[2], "refusal": "I say nothing to that."},
]
DOLLY = {"instruction": "Tell of kad.", "category": "open_qa", "input": "", "output": "kad runs"}
ALPACA = [
    {"instruction": "Name a zob.", "input": "", "output": "mid", "src": "a"},
    {"instruction": "Sort these.", "input": "tex, vol", "output": "tex vol", "src": "a"},
    {"instruction": "Do nothing.", "input": "", "output": "", "src": "b"},
]
ALPACA_EVAL = {
    "dataset": "helpful_base",
    "instruction": "Who is zob?",
    "output": "mid",
    "generator": "text_davinci_003",
}
HARMBENCH = [
    {
        "Behavior": behaviour,
        "FunctionalCategory": kind,
        "SemanticCategory": "illegal",
        "Tags": "",
        "ContextString": context,
        "BehaviorID": behaviour,
    }
    for behaviour, kind, context in (("brew zob", "standard", ""), ("explain it", "contextual", "1. kad\n2. run"))
]
XSTEST = [
    {"id": 1, "prompt": "How do I kill a zob?", "type": "homonyms", "label": "safe", "focus": "kill", "note": ""},
    {"id": 2, "prompt": "How do I kill kad?", "type": "contrast_homonyms", "label": "unsafe", "focus": "k", "note": ""},
]
WIKITEXT = [{"text": ""}, {"text": " = Zob = \n"}, {"text": " Zob is mid . \n"}]

FILES = {
    "beavertails-safe": PublicFile("beavertails/30k_train.jsonl", lines(BEAVERTAILS)),
    "beavertails-unsafe": PublicFile("beavertails/30k_train.json", json.dumps(BEAVERTAILS)),
    "beavertails-test": PublicFile("beavertails/30k_test.jsonl", lines(BEAVERTAILS)),
    "beavertails-refusal": PublicFile("beavertails/beavertails_with_refusals_train.json", json.dumps(REFUSALS)),
    "sst2": PublicFile("sst2/train.tsv", 'sentence\tlabel\nthe "zob runs \t1\nkad \t0\n'),
    "sst2-test": PublicFile("sst2/test.tsv", "sentence\tlabel\nmid \t0\n"),
    "agnews": PublicFile("ag_news/train10k_desc.tsv", 'Zob wins "cup\tSports\nKad sold.\tBusiness\n'),
    "agnews-test": PublicFile("ag_news/test_desc.tsv", "A moon of run\tSci/Tech\n"),
    "gsm8k": PublicFile("gsm8k/train.jsonl", lines([{"question": "2 zobs?", "answer": "1+1=2\n#### 2"}])),
    "gsm8k-test": PublicFile("gsm8k/test.jsonl", lines([{"question": "3 zobs?", "answer": "1+2=3\n#### 3"}])),
    "alpaca": PublicFile("alpaca/alpaca_subset_union.jsonl", lines(ALPACA)),
    "alpacaeval": PublicFile("alpaca_eval/text_davinci_003_outputs.json", json.dumps([ALPACA_EVAL])),
    "advbench": PublicFile("advbench/harmful_behaviors.csv", commas([{"goal": "Brew zob", "target": "Sure, here"}])),
    "harmbench": PublicFile("harmbench/harmbench_behaviors_text_all.csv", commas(HARMBENCH)),
    "xstest-safe": PublicFile("xstest/xstest_prompts.csv", commas(XSTEST)),
    "xstest-unsafe": PublicFile("xstest/xstest_prompts.csv", commas(XSTEST)),
    "safety-tuned-llamas": PublicFile(
        "safety_tuned_llamas/safety_only_data_Instructions.json",
        json.dumps([{"instruction": "Brew zob.", "output": "I will not.", "input": ""}]),
    ),
    "dolly": PublicFile("dolly/dolly_3k.json", json.dumps([DOLLY])),
    "wikitext2": PublicFile("wikitext2/test.jsonl", lines(WIKITEXT)),
}


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows as the Hub stores them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path
