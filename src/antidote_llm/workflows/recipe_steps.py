"""From a recipe to its steps: one spec each, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antidote_llm.choices import StageName
from antidote_llm.workflows.recipe_data import REALIGN_FILE, TEST_FILE
from antidote_llm.workflows.spec import Spec
from antidote_llm.workflows.specs import AlignSpec, EvaluateSpec, FinetuneSpec, Recipe, RepairSpec

ALIGNED, ATTACKED, REPAIRED = "aligned", "attacked", "repaired"


@dataclass(frozen=True)
class Places:
    """Where the results of a recipe go.

    Attributes:
        out: The folder of all.
    """

    out: Path

    @property
    def data(self) -> Path:
        """The rows that are drawn before anything is trained."""
        return self.out / "data"

    @property
    def aligned(self) -> Path:
        """Stage 1's result."""
        return self.out / "aligned"

    @property
    def tuned(self) -> Path:
        """Stage 2's result."""
        return self.out / "tuned"

    @property
    def repaired(self) -> Path:
        """Stage 3's result."""
        return self.out / "repaired"

    def evaluation(self, name: str) -> Path:
        """What one model answered."""
        return self.out / "evaluations" / name


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        stage: The stage that it belongs to.
        name: The model that it makes or measures.
        spec: What is to be done.
    """

    stage: StageName
    name: str
    spec: AlignSpec | FinetuneSpec | RepairSpec | EvaluateSpec


def recipe_steps(recipe: Recipe, out: Path, stages: Sequence[StageName], there: Sequence[str]) -> list[Step]:
    """Return the steps of some stages, in order.

    Args:
        recipe: What is to be done.
        out: Where the results go.
        stages: Which stages.
        there: Which of the models ``aligned``, ``attacked`` and ``repaired`` are there already.
    """
    places = Places(out)
    makers: Mapping[StageName, Callable[[Recipe, Places], Step]] = {
        "align": _align,
        "finetune": _finetune,
        "repair": _repair,
    }
    steps = [make(recipe, places) for stage, make in makers.items() if stage in stages]
    if "evaluate" in stages:
        made = {*there, *(step.name for step in steps)}
        steps += [_evaluate(recipe, places, name) for name in (ALIGNED, ATTACKED, REPAIRED) if name in made]
    return steps


def _align(recipe: Recipe, places: Places) -> Step:
    spec = AlignSpec(
        **_fields(recipe.align),
        model=recipe.model,
        out=str(places.aligned),
        template=recipe.template,
        data_seed=recipe.seed,
    )
    return Step("align", ALIGNED, spec)


def _finetune(recipe: Recipe, places: Places) -> Step:
    spec = FinetuneSpec(
        **_fields(recipe.finetune),
        model=str(places.aligned / "model"),
        out=str(places.tuned),
        template=recipe.template,
        data_seed=recipe.seed,
        apart_from=tuple(str(places.data / name) for name in (REALIGN_FILE, TEST_FILE)),
    )
    return Step("finetune", ATTACKED, spec)


def _repair(recipe: Recipe, places: Places) -> Step:
    aligned, tuned = str(places.aligned / "model"), str(places.tuned / "model")
    lora = recipe.finetune.training.lora is not None
    model: dict[str, Any] = {"model": aligned, "adapter": tuned} if lora else {"model": tuned, "aligned": aligned}
    # The rows are drawn already.
    drawn = {"harmful": str(places.data / REALIGN_FILE), "harmful_rows": None}
    spec = RepairSpec(
        **{**_fields(recipe.repair), **drawn, **model},
        evaluate="none",
        template=recipe.template,
        out=str(places.repaired),
    )
    return Step("repair", REPAIRED, spec)


def _evaluate(recipe: Recipe, places: Places, name: str) -> Step:
    stage = recipe.evaluate
    folder = {ALIGNED: places.aligned, ATTACKED: places.tuned, REPAIRED: places.repaired}[name] / "model"
    whole = name == ALIGNED or recipe.finetune.training.lora is None
    model = {"model": str(folder)} if whole else {"model": str(places.aligned / "model"), "adapter": str(folder)}
    fields = {key: value for key, value in _fields(stage).items() if key not in ("harmful", "harmful_rows")}
    spec = EvaluateSpec(
        **{**fields, **model, "task_rows": stage.task_rows if stage.tasks else None},
        harmful=str(places.data / TEST_FILE),
        template=recipe.template,
        out=str(places.evaluation(name)),
    )
    return Step("evaluate", name, spec)


def _fields(stage: Spec) -> dict[str, Any]:
    return {name: getattr(stage, name) for name in type(stage).model_fields}
