"""Reports a training run's progress to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

StepReport: TypeAlias = Callable[[int, int], None]


class ProgressCallback(TrainerCallback):
    """Calls ``report(step, steps)`` after each optimiser step."""

    def __init__(self, report: StepReport) -> None:
        self._report = report

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Report the step that has just been taken."""
        self._report(state.global_step, state.max_steps)
