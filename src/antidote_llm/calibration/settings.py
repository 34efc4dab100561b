"""How statistics are collected: what they depend on beside the model and the rows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.calibration.moments import TokenPolicy


class CalibrationSettings(BaseModel):
    """How statistics are collected: what the moments depend on beside the model and the rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: TokenPolicy = Field("all", description="Which tokens count: all of a row, its prompt, or its response.")
    batch_tokens: int = Field(2048, ge=1, description="Padded tokens of a micro-batch at most.")
    batch_rows: int | None = Field(None, ge=1, description="Rows of a micro-batch at most.")
    padding_side: Literal["left", "right"] = Field("right", description="Where short rows are padded.")
