"""Stage 2 without a defense: supervised fine-tuning on the user's rows, harmful ones included."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.data import Record, Renderer
from antidote_llm.training import TrainingSettings, attach_lora, train
from antidote_llm.training.progress import StepReport


def sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    settings: TrainingSettings,
    *,
    on_step: StepReport | None = None,
) -> PreTrainedModel | PeftModel:
    """Fine-tune an aligned model in place and return it, wrapped in adapters where the settings ask for them.

    Args:
        model: The aligned model.
        tokenizer: Its tokenizer; its chat template renders the records.
        records: The user's rows.
        settings: How it is trained; ``settings.lora`` decides between adapters and all weights.
        on_step: Called with the step and the number of steps.
    """
    trained = model if settings.lora is None else attach_lora(model, settings.lora, settings.seed)
    train(trained, Renderer(tokenizer).rows(records), settings, on_step=on_step)
    return trained
