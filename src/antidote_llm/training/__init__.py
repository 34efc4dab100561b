"""The one trainer that stages 1 and 2 share."""

from antidote_llm.training.lora import attach_lora
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import TrainingResult, train

__all__ = ["LoraSettings", "TrainingResult", "TrainingSettings", "attach_lora", "train"]
