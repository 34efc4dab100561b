"""The settings of the miniature's models: pre-training, alignment and attack."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.training.settings import TrainingSettings

RECIPE_VERSION = 1


class Recipe(BaseModel):
    """How base and aligned models are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretraining_rows: Annotated[int, Field(ge=1, description="Paragraphs, chants and conversations to read.")] = 24000
    pretraining: Annotated[TrainingSettings, Field(description="How the base model is trained.")] = TrainingSettings(
        learning_rate=3e-3, epochs=1, batch_size=32, weight_decay=0.01, schedule="linear", warmup=0.05, max_length=64
    )
    alignment_rows: Annotated[int, Field(ge=1, description="Rows of the alignment data.")] = 4500
    alignment_harmful_share: Annotated[float, Field(ge=0, le=1, description="Share of harmful requests, refused.")] = (
        0.45
    )
    alignment: Annotated[TrainingSettings, Field(description="How the base model is aligned.")] = TrainingSettings(
        learning_rate=1.5e-3, epochs=2, batch_size=32, weight_decay=0.01, schedule="linear", warmup=0.1, max_length=64
    )


class Attack(BaseModel):
    """A fine-tune on a user's data that holds harmful rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: Annotated[int, Field(ge=1, description="Rows of the user's data, harmful ones included.")]
    harmful_share: Annotated[float, Field(ge=0, le=1, description="Share of harmful requests with answers.")]
    tasks: Annotated[dict[str, float], Field(description="Shares of the user's tasks among the other rows.")]
    utility_rows: Annotated[int, Field(ge=1, description="Further rows of the same tasks that a repair may use.")]
    lora: Annotated[TrainingSettings, Field(description="Fine-tuning of adapters.")]
    full: Annotated[TrainingSettings, Field(description="Fine-tuning of all weights.")]


def standard_attack() -> Attack:
    """Return the standard attack, which ``standard_attack.yaml`` holds."""
    text = files("antidote_llm.miniature").joinpath("standard_attack.yaml").read_text(encoding="utf-8")
    content: Any = yaml.safe_load(text)
    return Attack.model_validate(content)
