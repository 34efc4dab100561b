"""The record of a training: what is needed to understand and repeat it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.training.settings import TrainingSettings


class TrainedRows(BaseModel):
    """Rows that a training learned from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    references: tuple[str, ...] = Field(description="What the user named, file by file.")
    rows: int = Field(description="How many rows.")
    tokens: int = Field(description="How many tokens they have, prompts included.")
    sha256: str = Field(description="The hash of the rendered rows.")


class TrainingRecord(BaseModel):
    """What was trained, on what, how, and at what cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, description="Version of this record.")
    versions: dict[str, str] = Field(description="Versions of the libraries.")
    command: str = Field(description="The command line.")
    stage: str = Field(description="alignment or finetuning.")
    defense: str = Field(description="The defense's name.")
    settings: dict[str, Any] = Field(description="The defense's settings.")
    training: TrainingSettings = Field(description="How it was trained.")
    merged: bool = Field(description="Whether the adapter was merged into the weights.")
    base: str = Field(description="The initial model, as the user named it.")
    base_sha256: dict[str, str] = Field(description="The hash of its configuration and weight files, by file name.")
    template: str = Field(description="How prompts were rendered.")
    prompts: str = Field("", description="The same in words; empty where there were no prompts.")
    data: TrainedRows = Field(description="The stage's own rows.")
    harmful_ratio: float | None = Field(description="Share of harmful rows that were mixed in; null where none were.")
    companion: TrainedRows | None = Field(description="Auxiliary rows, where the defense learns from some.")
    left_out: tuple[str, ...] = Field(
        (), description="Files of the initial model that were not copied: its documents and results."
    )
    trainable_parameters: int = Field(description="How many weights were trained.")
    processes: int = Field(description="How many processes trained together.")
    steps: int = Field(description="Optimiser steps.")
    resumed_from: int = Field(description="The step from which the run resumed; 0 where it was not interrupted.")
    first_loss: float = Field(description="The objective at the first step.")
    last_loss: float = Field(description="The objective at the last step.")
    wall_seconds: dict[str, float] = Field(description="Wall time by step of the work, of the last run.")
    peak_rss_bytes: int = Field(description="Largest resident memory of the process.")
