"""Stage 1 without a defense: supervised fine-tuning on refusals and helpful answers."""

from __future__ import annotations

from antidote_llm.training.defense import Lesson, StageData, alignment_defense
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import TrainingSettings


@alignment_defense()
def sft(data: StageData, training: TrainingSettings) -> Lesson:
    """Supervised fine-tuning: the cross-entropy of the alignment data's responses."""
    return Lesson(data.examples(training), Objective(), training)
