"""What came of a recipe: read from the folders that its commands wrote."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antidote_llm.bench.commands import ALIGNED, ATTACKED, REPAIRED, Places, Step
from antidote_llm.bench.recipe import Recipe
from antidote_llm.decision.compare import Comparison, compare
from antidote_llm.errors import UserError
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.io.result_folder import require_as_finished
from antidote_llm.io.strict_json import read_json

_RECORDS = {ALIGNED: "training.json", ATTACKED: "training.json", REPAIRED: "repair.json"}


def models_there(out: Path) -> list[str]:
    """Return which of a recipe's three models are finished."""
    return [name for name in _RECORDS if _record(out, name).is_file()]


def evaluations_there(out: Path) -> dict[str, Evaluation]:
    """Return the finished evaluations of a recipe's models, by model."""
    places = Places(out)
    return {
        name: Evaluation.read(places.evaluation(name))
        for name in _RECORDS
        if (places.evaluation(name) / "manifest.json").is_file()
    }


def require_before(steps: Sequence[Step], out: Path) -> None:
    """Refuse a stage whose model is neither there nor made by an earlier one, and models that have been changed.

    Raises:
        UserError: Names the stage that is missing, or the file that is another.
    """
    makes = {step.name for step in steps if step.stage != "evaluate"}
    for there in models_there(out):
        if there not in makes:
            # The others are looked at by their own commands.
            require_as_finished(_folder(out, there), "record/manifest.json")
    needs = {"finetune": (ALIGNED, "align"), "repair": (ATTACKED, "finetune")}
    made = set(models_there(out))
    for step in steps:
        name, stage = needs.get(step.stage, (None, ""))
        if name is not None and name not in made:
            raise UserError(f"{step.stage} needs what {stage} makes, and {out} has none: add {stage} to --only")
        made.add(step.name)


def comparison_of(evaluations: Mapping[str, Evaluation]) -> Comparison | None:
    """Return what the repair changed, where the attacked and the repaired model were measured."""
    if ATTACKED not in evaluations or REPAIRED not in evaluations:
        return None
    return compare(evaluations[ATTACKED], evaluations[REPAIRED], evaluations.get(ALIGNED))


def results_of(recipe: Recipe, steps: Sequence[Step], out: Path) -> dict[str, Any]:
    """Return everything that is known of a recipe's run, as JSON values."""
    evaluations = evaluations_there(out)
    comparison = comparison_of(evaluations)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "commands": [shlex.join(["antidote", *step.arguments]) for step in steps],
        "stages": {
            name: read_json(_record(out, name), f"remove {out} or choose another --out") for name in models_there(out)
        },
        "models": {
            name: {metric: estimate.model_dump(mode="json") for metric, estimate in evaluation.metrics.items()}
            for name, evaluation in evaluations.items()
        },
        "comparison": comparison.model_dump(mode="json") if comparison else None,
    }


def _record(out: Path, name: str) -> Path:
    return _folder(out, name) / "record" / _RECORDS[name]


def _folder(out: Path, name: str) -> Path:
    places = Places(out)
    return {ALIGNED: places.aligned, ATTACKED: places.tuned, REPAIRED: places.repaired}[name]
