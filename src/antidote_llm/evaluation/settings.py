"""How models are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from antidote_llm.choices import MatchMode, TemplateName
from antidote_llm.data.rendering import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_NEW_TOKENS = 128
# These change how fast the answers are generated, not what they are.
_SPEED_ONLY = {"batch_size", "batch_tokens"}


class EvaluationSettings(BaseModel):
    """How prompts are rendered, answered and matched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: TemplateName = Field(
        default="auto",
        description="Prompt template; auto: the tokenizer's chat template if there is one, the Alpaca prompt if not.",
    )
    system: str | None = Field(
        default=None, description="System prompt of every prompt that has none of its own; null for none."
    )
    prefill: str | None = Field(
        default=None,
        description="Opening of every answer to a harmful prompt, which the model goes on from; null for none.",
    )
    thinking: bool = Field(
        default=False,
        description="Whether a reasoning model may think before it replies; a thought is no part of its answer.",
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of an answer; where not given, 128 or the room that the model's positions leave.",
    )
    task_max_new_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens of an answer to a task; max_new_tokens where not given."
    )
    match: MatchMode = Field(
        default="exact",
        description="When a task's answer is right: exact is the gold answer and no more, prefix begins with it.",
    )
    batch_size: int = Field(default=64, ge=1, description="Most prompts answered at once.")
    batch_tokens: int = Field(
        default=16_384, ge=1, description="Most tokens held at once: prompts, answers and padding together."
    )

    @field_validator("prefill")
    @classmethod
    def _without_outer_space(cls, prefill: str | None) -> str | None:
        """Return the opening without outer white space: in models' vocabularies a space begins the next token."""
        if prefill is None or prefill.strip():
            return prefill and prefill.strip()
        raise ValueError("name an opening of at least a word")

    def renderer(self, tokenizer: PreTrainedTokenizerBase | None) -> Renderer:
        """Return what renders the prompts."""
        return Renderer(tokenizer, self.template, system=self.system, thinking=self.thinking)

    def that_shape_answers(self) -> dict[str, Any]:
        """Return the settings under which two evaluations must agree to be compared."""
        return self.model_dump(exclude=_SPEED_ONLY)
