"""New low-rank adapters on a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from antidote_llm.errors import UserError, setting
from antidote_llm.training.settings import LoraSettings


def attach_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """Freeze a model and add adapters that change nothing yet.

    Raises:
        UserError: No linear layer has the name of a target.
    """
    _require_layers(model, settings.targets)
    set_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
        # GPT-2's linear layers hold transposed weights.
        fan_in_fan_out=any(
            isinstance(module, Conv1D) and name.endswith(settings.targets) for name, module in model.named_modules()
        ),
    )
    with warnings.catch_warnings():
        # peft uses a name of transformers that is deprecated.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return get_peft_model(model, config)


def _require_layers(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuse a target that peft would ignore, or cannot adapt."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if missing:
        known = dict.fromkeys(name.rpartition(".")[2] for name in layers)
        raise UserError(
            f"{setting('lora_targets')} {','.join(targets)}: no layer of this model is named {' or '.join(missing)}: "
            f"name some of {', '.join(known)}"
        )
