"""The settings of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# No run needs more, and larger numbers overflow in libraries.
_MOST, _LARGEST_RANK = 10**9, 10**6

Schedule = Literal["constant", "linear", "cosine"]


class LoraSettings(BaseModel):
    """Low-rank adaptation: which matrices get an adapter, and of what size."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: Annotated[int, Field(ge=1, le=_LARGEST_RANK, description="Rank r of every adapter.")] = 256
    alpha: Annotated[float, Field(gt=0, description="Numerator of the adapter's scale, alpha / r.")] = 4
    targets: Annotated[tuple[str, ...], Field(min_length=1, description="Names of the linear layers that get one.")] = (
        "q_proj",
        "k_proj",
        "v_proj",
    )
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the adapter's input.")] = 0.0


class TrainingSettings(BaseModel):
    """One training run; the defaults are those of the paper's fine-tuning stage (arXiv 2408.09600, appendix A).

    Clipping at norm 1 and cutting at 512 tokens are this trainer's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    learning_rate: Annotated[float, Field(gt=0, description="Peak learning rate of AdamW.")] = 1e-4
    epochs: Annotated[float, Field(gt=0, le=_MOST, description="Passes over the rows, unless max_steps is set.")] = 20
    max_steps: Annotated[int | None, Field(ge=1, le=_MOST, description="Optimiser steps; overrides epochs.")] = None
    batch_size: Annotated[int, Field(ge=1, le=_MOST, description="Rows in one forward pass.")] = 5
    accumulation: Annotated[int, Field(ge=1, le=_MOST, description="Forward passes per optimiser step.")] = 1
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's weight decay.")] = 0.1
    max_gradient_norm: Annotated[float, Field(ge=0, description="Gradients are clipped to this norm; 0 for never.")] = (
        1.0
    )
    schedule: Annotated[Schedule, Field(description="How the learning rate falls after the warm-up.")] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1, description="Share of the steps in which the rate rises.")] = 0.0
    max_length: Annotated[int, Field(ge=2, le=_MOST, description="Longer rows are cut to this many tokens.")] = 512
    batching: Annotated[
        Literal["shuffled", "grouped", "ordered"],
        Field(description="Any rows in a batch, rows of about the same length, or the rows as they come."),
    ] = "shuffled"
    learn_from: Annotated[
        Literal["response", "all"], Field(description="Tokens in the loss: the response's, or the prompt's too.")
    ] = "response"
    lora: Annotated[
        LoraSettings | None, Field(description="Train adapters of this form; null trains every weight.")
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="What the model computes in; weights stay as they are.")
    ] = "float32"
    gradient_checkpointing: Annotated[bool, Field(description="Recompute activations to save memory.")] = False
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Orders the rows and starts the adapters.")] = 0


def step_count(settings: TrainingSettings, rows: int) -> int:
    """Return how many optimiser steps a run takes."""
    steps_an_epoch = -(-rows // (settings.batch_size * settings.accumulation))
    return settings.max_steps or max(1, round(settings.epochs * steps_an_epoch))


# The paper's alignment stage (arXiv 2408.09600, appendix A): a first adapter, merged when it is trained.
ALIGNMENT_DEFAULTS = TrainingSettings(learning_rate=1e-3, schedule="cosine", warmup=0.1, lora=LoraSettings())
# The paper's fine-tuning stage (arXiv 2408.09600, appendix A): a second adapter, on the merged first one.
FINETUNING_DEFAULTS = TrainingSettings(lora=LoraSettings())
