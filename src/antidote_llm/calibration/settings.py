"""How statistics are collected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.choices import TokenPolicy

if TYPE_CHECKING:
    import torch

# On a CPU, larger micro-batches do not fit in its caches and need more padding; a GPU needs more positions at once.
_BATCH_TOKENS_ON_GPU = 8192


class CalibrationSettings(BaseModel):
    """How statistics are collected: what the moments depend on apart from the model and the rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: TokenPolicy = Field("all", description="Which tokens count: all of a row, its prompt, or its response.")
    batch_tokens: int = Field(
        1024, ge=1, description="Padded tokens of a micro-batch at most; where it is not given, 8192 on a GPU."
    )
    batch_rows: int | None = Field(None, ge=1, description="Rows of a micro-batch at most.")
    padding_side: Literal["left", "right"] = Field("right", description="Where short rows are padded.")

    def on(self, device: torch.device) -> CalibrationSettings:
        """Return the settings for a device, which has its own size of a micro-batch where none was given."""
        if device.type == "cpu" or "batch_tokens" in self.model_fields_set:
            return self
        return self.model_copy(update={"batch_tokens": _BATCH_TOKENS_ON_GPU})
