"""From a recipe to the command lines that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from antidote_llm.bench.drawing import REALIGN_FILE, TEST_FILE
from antidote_llm.bench.recipe import AlignStage, FinetuneStage, Recipe
from antidote_llm.choices import StageName
from antidote_llm.methods import option_name

ALIGNED, ATTACKED, REPAIRED = "aligned", "attacked", "repaired"
# The option of a setting of adapters, where it has another name.
_LORA_OPTIONS = {"alpha": "--lora-alpha", "targets": "--lora-targets", "dropout": "--lora-dropout"}


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
    """One command of a recipe.

    Attributes:
        stage: The stage that it belongs to.
        name: What it makes.
        out: Where that goes.
        arguments: The command line, without its first word.
    """

    stage: StageName
    name: str
    out: Path
    arguments: tuple[str, ...]


def step_commands(recipe: Recipe, out: Path, stages: Sequence[StageName], there: Sequence[str]) -> list[Step]:
    """Return the commands of some stages, in order.

    Args:
        recipe: What is to be done.
        out: Where the results go.
        stages: Which stages.
        there: Which of the models ``aligned``, ``attacked`` and ``repaired`` are there already.
    """
    places = Places(out)
    makers = {"align": _align, "finetune": _finetune, "repair": _repair}
    steps = [make(recipe, places) for stage, make in makers.items() if stage in stages]
    if "evaluate" in stages:
        made = {*there, *(step.name for step in steps)}
        steps += [_evaluate(recipe, places, name) for name in (ALIGNED, ATTACKED, REPAIRED) if name in made]
    return steps


def _align(recipe: Recipe, places: Places) -> Step:
    stage = recipe.align
    companion = [*_each("--harmful", stage.harmful), *_given({"harmful_rows": stage.harmful_rows})]
    arguments = ["align", recipe.model, *_trained(recipe, stage), *companion, "--out", str(places.aligned)]
    return Step("align", ALIGNED, places.aligned, tuple(arguments))


def _finetune(recipe: Recipe, places: Places) -> Step:
    stage = recipe.finetune
    attack = [
        *_each("--harmful", stage.harmful),
        *_given({"harmful_ratio": stage.harmful_ratio}),
        *_each("--apart-from", [str(places.data / name) for name in (REALIGN_FILE, TEST_FILE)]),
    ]
    companion = [*_each("--safe", stage.safe), *_given({"safe_rows": stage.safe_rows})]
    start = ["finetune", str(places.aligned / "model")]
    arguments = [*start, *_trained(recipe, stage), *attack, *companion, "--out", str(places.tuned)]
    return Step("finetune", ATTACKED, places.tuned, tuple(arguments))


def _repair(recipe: Recipe, places: Places) -> Step:
    stage = recipe.repair
    options = {
        "harmful": places.data / REALIGN_FILE,
        "evaluate": "none",
        "method": stage.method,
        "preset": stage.preset,
        **stage.settings,
        **_unlike(stage, ("sites", "dtype")),
        "template": recipe.template,
        "out": places.repaired,
    }
    aligned, tuned = str(places.aligned / "model"), str(places.tuned / "model")
    model = [aligned, "--adapter", tuned] if recipe.finetune.training.lora else [tuned, "--aligned", aligned]
    return Step("repair", REPAIRED, places.repaired, ("repair", *model, *_given(options)))


def _evaluate(recipe: Recipe, places: Places, name: str) -> Step:
    stage = recipe.evaluate
    options = {
        "harmful": places.data / TEST_FILE,
        "harmless": stage.harmless,
        "task_rows": stage.task_rows if stage.tasks else None,
        "max_new_tokens": stage.max_new_tokens,
        "task_max_new_tokens": stage.task_max_new_tokens,
        "template": recipe.template,
        **_unlike(stage, ("dtype",)),
        "out": places.evaluation(name),
    }
    named = [*_each("--task", stage.tasks), *_each("--judge", stage.judge)]
    model = _model(recipe, places, name)
    return Step("evaluate", name, places.evaluation(name), ("evaluate", *model, *named, *_given(options)))


def _model(recipe: Recipe, places: Places, name: str) -> list[str]:
    """Return the arguments that name a model: a whole one, or the aligned one and an adapter."""
    folder = {ALIGNED: places.aligned, ATTACKED: places.tuned, REPAIRED: places.repaired}[name] / "model"
    if name == ALIGNED or recipe.finetune.training.lora is None:
        return [str(folder)]
    return [str(places.aligned / "model"), "--adapter", str(folder)]


def _trained(recipe: Recipe, stage: AlignStage | FinetuneStage) -> list[str]:
    chosen = {"rows": stage.rows, "defense": stage.defense, "preset": stage.preset, **stage.settings}
    how = {"template": recipe.template, "data_seed": recipe.seed}
    own = _unlike(stage, ("dtype", "save_dtype", "save_every"))
    return [*_each("--data", stage.data), *_given({**chosen, **how, **own}), *_training(stage)]


def _training(stage: AlignStage | FinetuneStage) -> list[str]:
    """Return the options of a training that are not the command's own defaults."""
    defaults = stage.defaults.model_dump()
    given = {name: value for name, value in stage.training.model_dump().items() if value != defaults[name]}
    adapter = given.pop("lora", defaults["lora"])
    words = _given(given)
    if adapter is None:
        return [*words, "--full"]
    for name, value in adapter.items():
        if value != defaults["lora"][name]:
            words += [_LORA_OPTIONS.get(name, option_name(name)), _word(value)]
    return words


def _unlike(stage: BaseModel, names: Sequence[str]) -> dict[str, Any]:
    """Return those of some values that are not the command's own defaults, which are the recipe's too."""
    fields = type(stage).model_fields
    return {name: value for name in names if (value := getattr(stage, name)) != fields[name].default}


def _given(options: Mapping[str, Any]) -> list[str]:
    """Return options with their values, those that are not set left out."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(option_name(name) if value else f"--no-{option_name(name).removeprefix('--')}")
        elif value is not None:
            words += [option_name(name), _word(value)]
    return words


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
