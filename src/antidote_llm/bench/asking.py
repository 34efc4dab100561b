"""What it takes to repair and to ask: passes forward alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.bench.commands import Step
from antidote_llm.bench.drawing import DrawnData
from antidote_llm.bench.recipe import Recipe
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.tasks.task import load_task
from antidote_llm.models.skeleton import Skeleton
from antidote_llm.training.estimate import Speed, matrix_entries, renderer_for


class AskingPlan(BaseModel):
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


def plan_asking(
    recipe: Recipe,
    drawn: DrawnData,
    harmless: Sequence[Record],
    tasks: Mapping[str, Sequence[Record]],
    steps: Sequence[Step],
    skeleton: Skeleton,
    speed: Speed,
) -> list[AskingPlan]:
    """Work out what the steps that train nothing would take.

    Args:
        recipe: What is to be done.
        drawn: The rows of the repair and of the test.
        harmless: Harmless requests.
        tasks: The rows of every task.
        steps: The recipe's commands; those that train are passed over.
        skeleton: The model.
        speed: How fast this machine is.
    """
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
            AskingPlan(
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
