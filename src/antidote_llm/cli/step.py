"""One step of a recipe, in a process of its own: reads a spec as JSON from standard input, and carries it out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from antidote_llm.cli.main import enter
from antidote_llm.cli.terminal import Terminal
from antidote_llm.workflows.specs import AlignSpec, EvaluateSpec, FinetuneSpec, RepairSpec


def run_step(text: str) -> None:
    """Carry out a step.

    Args:
        text: The command and its spec, as JSON.
    """
    # Imported here: an interrupt while torch is loaded ends as any other does.
    from antidote_llm.workflows.evaluate import run_evaluation
    from antidote_llm.workflows.repair import run_repair
    from antidote_llm.workflows.train import run_training

    step = json.loads(text)
    terminal = Terminal(as_json=True)
    actions: Mapping[str, Callable[[Any], object]] = {
        "align": lambda spec: run_training(AlignSpec.model_validate(spec), terminal),
        "finetune": lambda spec: run_training(FinetuneSpec.model_validate(spec), terminal),
        "repair": lambda spec: run_repair(RepairSpec.model_validate(spec), terminal),
        "evaluate": lambda spec: run_evaluation(EvaluateSpec.model_validate(spec), terminal),
    }
    actions[step["command"]](step["spec"])


if __name__ == "__main__":
    enter(lambda: run_step(sys.stdin.read()))
