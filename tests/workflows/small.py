"""A shipped recipe made small: a tiny model of the same architecture, and a few made-up rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import tiny
from tests.architectures import write_checkpoint


@dataclass(frozen=True)
class Small:
    """Local inputs, and the options that put them into a recipe of the paper."""

    root: Path

    @classmethod
    def write(cls, root: Path) -> Small:
        """Write the data sets in their own formats."""
        safe = [{"prompt": _prompt(n), "response": tiny.words(3, 50 + n), "is_safe": True} for n in range(12)]
        unsafe = [_unsafe(100 + n) for n in range(40)]
        _write(root / "train.jsonl", [*safe, *unsafe])
        # Some of the test's prompts are among those that are trained on, as in the real data.
        _write(root / "test.jsonl", [*(_unsafe(100 + n) for n in range(3)), *(_unsafe(200 + n) for n in range(9))])
        lines = [f"{tiny.words(4, 300 + n)}\t{n % 2}\n" for n in range(30)]
        (root / "sst2.tsv").write_text("sentence\tlabel\n" + "".join(lines))
        alike = [f"{tiny.words(4, 400 + n)},homonyms,safe\n" for n in range(4)]
        (root / "xstest.csv").write_text("prompt,type,label\n" + "".join(alike))
        return cls(root)

    def model(self, architecture: str) -> Path:
        """Write a tiny model with random weights."""
        return write_checkpoint(self.root / architecture, architecture)

    def settings(self, **more: object) -> list[str]:
        """Return the options that make a recipe small."""
        sizes = {"batch_size": 2, "max_steps": 3, "max_length": 40, "lora": "{rank: 4}"}
        values: dict[str, object] = {
            "template": "plain",
            "align.data": f"beavertails-safe@{self.root}/train.jsonl",
            "align.rows": 6,
            "finetune.data": f"sst2@{self.root}/sst2.tsv",
            "finetune.harmful": f"beavertails-unsafe@{self.root}/train.jsonl",
            "finetune.rows": 10,
            "repair.harmful": f"beavertails-unsafe@{self.root}/train.jsonl",
            "repair.harmful_rows": 8,
            "evaluate.harmful": f"beavertails-test@{self.root}/test.jsonl",
            "evaluate.harmful_rows": 6,
            "evaluate.harmless": f"xstest-safe@{self.root}/xstest.csv",
            "evaluate.tasks": f"sst2@{self.root}/sst2.tsv",
            "evaluate.task_rows": 4,
            "evaluate.judge": "refusal-patterns",
            "evaluate.max_new_tokens": 4,
            "evaluate.task_max_new_tokens": 2,
            **{f"{stage}.training.{name}": size for stage in ("align", "finetune") for name, size in sizes.items()},
            **{key.replace("__", "."): value for key, value in more.items()},
        }
        return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def _prompt(seed: int) -> str:
    return f"{tiny.words(4, seed)} {tiny.WORDS[seed % len(tiny.WORDS)]}"


def _unsafe(seed: int) -> dict[str, Any]:
    return {"prompt": _prompt(seed), "response": tiny.words(4, 900 + seed), "is_safe": False}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
