"""Stage 2 without a defense: supervised fine-tuning on the user's rows, harmful ones included."""

from __future__ import annotations

from antidote_llm.training.defense import StageData, TrainingJob, finetuning_defense
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import TrainingSettings


# The published code differs in how it mixes rows only, which the command takes from the preset.
@finetuning_defense(presets={"paper": {}, "official-code": {}})
def sft(data: StageData, training: TrainingSettings) -> TrainingJob:
    """Supervised fine-tuning: the cross-entropy of the user's responses."""
    return TrainingJob(data.examples(training), Objective(), training)
