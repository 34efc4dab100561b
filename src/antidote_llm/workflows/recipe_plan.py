"""What a recipe would take: its trainings, and the forward passes of its repair and evaluations."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.tasks.task import load_task
from antidote_llm.models.skeleton import Skeleton, open_skeleton
from antidote_llm.training.estimate import (
    Speed,
    StagePlan,
    commonest_matrix,
    given_speed,
    matrix_entries,
    measured_speed,
    renderer_for,
)
from antidote_llm.workflows.questions import prompts_from, tasks_from
from antidote_llm.workflows.recipe_data import DrawnData
from antidote_llm.workflows.recipe_steps import Places, Step, recipe_steps
from antidote_llm.workflows.reporter import Reporter
from antidote_llm.workflows.spec import command_line
from antidote_llm.workflows.specs import AlignSpec, FinetuneSpec, Recipe
from antidote_llm.workflows.train import plan_training

_MEASURED_TOKENS = 1024


class RecipePlan(BaseModel):
    """What a recipe would run, and what that would take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field(description="The recipe's name.")
    source: str = Field(description="The paper that it follows.")
    model: str = Field(description="The model that it starts from.")
    commands: list[str] = Field(description="The commands of its steps.")
    trainings: list[StagePlan] = Field(description="What its trainings would take.")
    passes: list[PassPlan] = Field(description="What its repair and its evaluations would take.")
    memory_bytes: int | None = Field(description="The memory of the largest training; null where none is trained.")
    seconds: float = Field(description="Time of all at the plan's speed, judges left out.")


class PassPlan(BaseModel):
    """What a repair's statistics, or one model's evaluation, would take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["repair", "evaluate"] = Field(description="The stage.")
    name: str = Field(description="The model that it makes, or that is asked.")
    rows: int = Field(description="Rows that are read, or prompts that are asked.")
    tokens: int = Field(description="Their tokens.")
    new_tokens: int = Field(description="Most tokens that are generated.")
    memory_bytes: int = Field(description="Weights, and the keys and values of all tokens that are held at once.")
    flops: float = Field(description="Floating-point operations; a judge's own are not among them.")
    seconds: float = Field(description="Time at the plan's speed; generation reaches it only in large batches.")


def plan_recipe(
    recipe: Recipe, steps: Sequence[Step], drawn: DrawnData, reporter: Reporter, flops: float | None
) -> RecipePlan:
    """Work out what a recipe would take.

    Args:
        recipe: What would be done.
        steps: Its steps.
        drawn: The rows that would be drawn for it.
        reporter: Hears how prompts would be put.
        flops: Floating-point operations a second; measured where not given.
    """
    skeleton = open_skeleton(recipe.model)
    speed = given_speed(flops) if flops else _measured(skeleton, recipe)
    planned = planned_trainings(recipe, steps, drawn, reporter, speed.flops_per_second)
    trained = [plan.model_copy(update={"speed": speed}) for plan in planned]
    harmless = prompts_from(recipe.evaluate.harmless)
    tasks, _ = tasks_from(recipe.evaluate.tasks, recipe.evaluate.task_rows)
    passes = _planned_passes(recipe, drawn, harmless, tasks, steps, skeleton, speed)
    return RecipePlan(
        recipe=recipe.name,
        source=recipe.source,
        model=recipe.model,
        commands=[command_line(step.spec) for step in steps],
        trainings=trained,
        passes=passes,
        memory_bytes=max((plan.memory_bytes for plan in trained), default=None),
        seconds=sum(plan.seconds for plan in trained) + sum(plan.seconds for plan in passes),
    )


def planned_trainings(
    recipe: Recipe, steps: Sequence[Step], drawn: DrawnData, reporter: Reporter, flops: float
) -> list[StagePlan]:
    """Plan the steps that train, on the rows that would be drawn; the model of stage 2 is not there yet.

    Raises:
        UserError: As the trainings would, over their data or the model's layers.
    """
    stages = [step.stage for step in steps if step.stage in ("align", "finetune")]
    plans = []
    with tempfile.TemporaryDirectory(prefix="antidote-plan-") as folder:
        drawn.write(Places(Path(folder)).data)
        for step in recipe_steps(recipe, Path(folder), stages, ()):
            if isinstance(step.spec, (AlignSpec, FinetuneSpec)):
                plans.append(plan_training(step.spec.model_copy(update={"model": recipe.model}), reporter, flops))
    return plans


def _measured(skeleton: Skeleton, recipe: Recipe) -> Speed:
    return measured_speed(_MEASURED_TOKENS, commonest_matrix(skeleton.model()), recipe.finetune.training)


def _planned_passes(
    recipe: Recipe,
    drawn: DrawnData,
    harmless: Sequence[Record],
    tasks: Mapping[str, Sequence[Record]],
    steps: Sequence[Step],
    skeleton: Skeleton,
    speed: Speed,
) -> list[PassPlan]:
    """Work out what the steps that train nothing would take."""
    renderer = renderer_for(skeleton, recipe.template, None)
    model = skeleton.model()
    entries, width = matrix_entries(model), _width(recipe, skeleton)
    weights = width * sum(int(parameter.numel()) for parameter in model.parameters())
    read = sum(len(row.input_ids) for row in renderer.rows(drawn.realign))
    requests = [*drawn.test, *harmless]
    asked = [*requests, *(record for rows in tasks.values() for record in rows)]
    prompts, generated = _prompt_tokens(renderer, asked), _most_generated(recipe, len(requests), tasks)
    plans = []
    for step in steps:
        if step.stage not in ("repair", "evaluate"):
            continue
        asks = step.stage == "evaluate"
        rows, tokens = (len(asked), prompts) if asks else (len(drawn.realign), read)
        flops = 2.0 * entries * (tokens + (generated if asks else 0))
        plans.append(
            PassPlan(
                stage="evaluate" if asks else "repair",
                name=step.name,
                rows=rows,
                tokens=tokens,
                new_tokens=generated if asks else 0,
                memory_bytes=weights + (_held_bytes(skeleton, width) if asks else 0),
                flops=flops,
                seconds=flops / speed.flops_per_second,
            )
        )
    return plans


def _prompt_tokens(renderer: Renderer, records: Sequence[Record]) -> int:
    return sum(row.response_start for row in renderer.rows(records))


def _most_generated(recipe: Recipe, requests: int, tasks: Mapping[str, Sequence[Record]]) -> int:
    stage = recipe.evaluate
    most = stage.max_new_tokens * requests
    for name, rows in tasks.items():
        known = load_task(name)
        own = known.new_tokens if known else stage.max_new_tokens
        most += len(rows) * (stage.task_max_new_tokens or own)
    return most


def _width(recipe: Recipe, skeleton: Skeleton) -> int:
    """Return the bytes of a weight as the models are asked."""
    names = (recipe.evaluate.dtype, recipe.align.save_dtype)
    chosen = next((getattr(torch, name) for name in names if name != "auto"), skeleton.stored_dtype)
    return int(chosen.itemsize)


def _held_bytes(skeleton: Skeleton, width: int) -> int:
    """Return what the keys and values of a full batch take."""
    config = skeleton.config.get_text_config()
    heads = int(config.num_attention_heads)
    kept_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    tokens = EvaluationSettings().batch_tokens
    return int(2 * config.num_hidden_layers * kept_heads * head_size * tokens * width)
