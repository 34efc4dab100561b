"""Stage 1 without a defense: supervised fine-tuning on refusals and helpful answers."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.data import Record, Renderer
from antidote_llm.training import TrainingResult, TrainingSettings, train
from antidote_llm.training.progress import StepReport


def sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    settings: TrainingSettings,
    *,
    on_step: StepReport | None = None,
) -> TrainingResult:
    """Align a model in place.

    Args:
        model: The base model.
        tokenizer: Its tokenizer; its chat template renders the records.
        records: Harmful requests with refusals, harmless ones with answers.
        settings: How it is trained.
        on_step: Called with the step and the number of steps.
    """
    return train(model, Renderer(tokenizer).rows(records), settings, on_step=on_step)
