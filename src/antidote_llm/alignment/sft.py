"""Stage 1 without a defense: supervised fine-tuning on refusals and helpful answers."""

from __future__ import annotations

from antidote_llm.training.defense import StageData, TrainingJob, alignment_defense
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import TrainingSettings


@alignment_defense()
def sft(data: StageData, training: TrainingSettings) -> TrainingJob:
    """Supervised fine-tuning: the cross-entropy of the alignment data's responses."""
    return TrainingJob(data.examples(training), Objective(), training)
