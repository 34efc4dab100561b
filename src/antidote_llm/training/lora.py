"""Puts fresh low-rank adapters on a model."""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from antidote_llm.errors import UserError
from antidote_llm.training.settings import LoraSettings


def attach_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """Freeze a model and give it adapters that change nothing yet.

    Raises:
        UserError: No linear layer has one of the target names.
    """
    set_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
        # GPT-2's linear layers hold their weights the other way round.
        fan_in_fan_out=any(
            isinstance(module, Conv1D) and name.endswith(settings.targets) for name, module in model.named_modules()
        ),
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers for a name that transformers is about to change.
            warnings.filterwarnings("ignore", category=FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"no layer of this model is named {' or '.join(settings.targets)}: set other targets"
        ) from error
