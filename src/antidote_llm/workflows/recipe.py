"""Runs a recipe: its stages become specs, each is carried out, and what they found is gathered."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from antidote_llm.choices import StageName
from antidote_llm.data.mixing import require_disjoint
from antidote_llm.decision.compare import Comparison, compare
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.endpoint_keys import KEY_VARIABLE, URL_VARIABLE, only_tied_keys, require_no_secret
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.io.files import write_json
from antidote_llm.io.result_folder import require_as_finished
from antidote_llm.io.strict_json import read_json
from antidote_llm.workflows.opening import require_openable
from antidote_llm.workflows.questions import judge_from, prompts_from, tasks_from
from antidote_llm.workflows.recipe_data import DrawnData
from antidote_llm.workflows.recipe_plan import RecipePlan, plan_recipe, planned_trainings
from antidote_llm.workflows.recipe_steps import ALIGNED, ATTACKED, REPAIRED, Places, Step, recipe_steps
from antidote_llm.workflows.reporter import Reporter
from antidote_llm.workflows.spec import command_line
from antidote_llm.workflows.specs import Recipe

_RECORDS = {ALIGNED: "training.json", ATTACKED: "training.json", REPAIRED: "repair.json"}
_ALL_MODELS = (ALIGNED, ATTACKED, REPAIRED)
# In the commands of a plan, where no folder was named.
_UNNAMED = "DIR"


@dataclass(frozen=True)
class RecipeResult:
    """What came of a recipe.

    Attributes:
        out: The folder of all its results.
        value: Everything that is known of it, as JSON values.
        evaluations: The evaluations of its models.
        comparison: What the repair changed, where both models were measured.
    """

    out: Path
    value: dict[str, Any]
    evaluations: Mapping[str, Evaluation]
    comparison: Comparison | None


def plan_of_recipe(
    recipe: Recipe, stages: Sequence[StageName], reporter: Reporter, out: Path | None = None, flops: float | None = None
) -> RecipePlan:
    """Work out what a recipe would run, and what that would take; nothing is trained.

    Raises:
        UserError: As the stages would, over their data, settings or the model's layers.
    """
    _require_no_secret(recipe)
    place = Path(_UNNAMED) if out is None else out
    require_openable(place)
    steps = recipe_steps(recipe, place, stages, _ALL_MODELS)
    return plan_recipe(recipe, steps, DrawnData.of(recipe), reporter, flops)


def run_recipe(
    recipe: Recipe, stages: Sequence[StageName], out: Path, reporter: Reporter, run_step: Callable[[Step], int]
) -> RecipeResult | int:
    """Run the stages of a recipe in order; what is finished already is left.

    Args:
        recipe: What is to be done.
        stages: Which stages.
        out: Where all results go.
        reporter: Hears which step runs.
        run_step: Carries out one step, and returns an exit code.

    Returns:
        The result, or the exit code of the first step that failed.

    Raises:
        UserError: A setting or an input of any stage is wrong, or a stage lacks what an earlier one makes.
    """
    _require_no_secret(recipe)
    require_openable(out)
    steps = recipe_steps(recipe, out, stages, models_there(out))
    _require_made(steps, out)
    drawn = DrawnData.of(recipe)
    with only_tied_keys(os.environ) as withheld:
        if "evaluate" in stages:
            _require_askable(recipe, drawn)
            if withheld:
                _warn_of_key(reporter, recipe)
        # What is wrong with a later stage's rows is found before the first one's training.
        planned_trainings(recipe, steps, drawn, reporter, 1.0)
        drawn.write(Places(out).data)
        for number, step in enumerate(steps, 1):
            reporter.say(f"[{number}/{len(steps)}] {command_line(step.spec)}")
            if code := run_step(step):
                return code
    evaluations = _evaluations_there(out)
    comparison = _comparison_of(evaluations)
    value = _value(recipe, steps, out, evaluations, comparison)
    write_json(out / "results.json", value)
    return RecipeResult(out, value, evaluations, comparison)


def models_there(out: Path) -> list[str]:
    """Return which of a recipe's three models are finished."""
    return [name for name in _RECORDS if _record(out, name).is_file()]


def _require_no_secret(recipe: Recipe) -> None:
    """Refuse an address with a key in it: plans and results hold the commands, whichever stages are run."""
    for judge in recipe.evaluate.judge:
        require_no_secret(judge.partition("#")[0] if judge.startswith("endpoint=") else "")


def _require_made(steps: Sequence[Step], out: Path) -> None:
    """Refuse a stage whose model is neither there nor made by an earlier one, and models that have been changed.

    Raises:
        UserError: Names the stage that is missing, or the file that is another.
    """
    makes = {step.name for step in steps if step.stage != "evaluate"}
    for there in models_there(out):
        if there not in makes:
            # The others are looked at by their own workflows.
            require_as_finished(_folder(out, there), "record/manifest.json")
    needs = {"finetune": (ALIGNED, "align"), "repair": (ATTACKED, "finetune")}
    made = set(models_there(out))
    for step in steps:
        name, stage = needs.get(step.stage, (None, ""))
        if name is not None and name not in made:
            raise UserError(
                f"{step.stage} needs what {stage} makes, and {out} has none: add {stage} to {setting('only')}"
            )
        made.add(step.name)


def _require_askable(recipe: Recipe, drawn: DrawnData) -> None:
    """Refuse requests, tasks and judges that there are none of, and prompts that the repair learns from."""
    harmless = prompts_from(recipe.evaluate.harmless)
    tasks, _ = tasks_from(recipe.evaluate.tasks, recipe.evaluate.task_rows)
    require_disjoint(drawn.realign, [*harmless, *chain.from_iterable(tasks.values())])
    judge_from(recipe.evaluate.judge)


def _warn_of_key(reporter: Reporter, recipe: Recipe) -> None:
    """Say that a key which names no server is not sent to the one that a recipe names."""
    for judge in recipe.evaluate.judge:
        if judge.startswith("endpoint="):
            reporter.warn(
                f"{KEY_VARIABLE} is not sent to {judge.removeprefix('endpoint=')}, which the recipe names: "
                f"set {URL_VARIABLE} to the server that the key is for"
            )


def _evaluations_there(out: Path) -> dict[str, Evaluation]:
    places = Places(out)
    return {
        name: Evaluation.read(places.evaluation(name))
        for name in _RECORDS
        if (places.evaluation(name) / "manifest.json").is_file()
    }


def _comparison_of(evaluations: Mapping[str, Evaluation]) -> Comparison | None:
    if ATTACKED not in evaluations or REPAIRED not in evaluations:
        return None
    return compare(evaluations[ATTACKED], evaluations[REPAIRED], evaluations.get(ALIGNED))


def _value(
    recipe: Recipe,
    steps: Sequence[Step],
    out: Path,
    evaluations: Mapping[str, Evaluation],
    comparison: Comparison | None,
) -> dict[str, Any]:
    return {
        "recipe": recipe.model_dump(mode="json"),
        "commands": [command_line(step.spec) for step in steps],
        "stages": {
            name: read_json(_record(out, name), f"remove {out} or choose another {setting('out')}")
            for name in models_there(out)
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
