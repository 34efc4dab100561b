"""What a repair is judged by: the same questions before, after, and of the aligned model where one is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antidote_llm.cli import suite_options as suite_opts
from antidote_llm.cli import task_options as task_opts
from antidote_llm.cli.terminal import Terminal
from antidote_llm.data.mixing import hold_out, require_disjoint
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import Judge
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.resources import Stopwatch
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.target import Target
from antidote_llm.report.compose import AFTER, ALIGNED, BEFORE

_HELD_OUT_FRACTION, _HELD_OUT_MOST, _HELD_OUT_SEED = 0.2, 200, 0


@dataclass(frozen=True)
class EvaluationPlan:
    """Questions, and who judges the answers."""

    suite: Suite
    judge: Judge
    settings: EvaluationSettings

    def asking(self, opened: LoadedModel) -> dict[str, Any]:
        """Return what makes it this examination of a model, as JSON values.

        Raises:
            UserError: The model has no tokenizer, or cannot be asked one of the questions.
        """
        if opened.tokenizer is None:
            raise UserError(
                f"{opened.base.reference}: no tokenizer, which judges and tasks need to read answers: pass "
                "--tokenizer, or --evaluate none without --harmless and --task"
            )
        return suite_opts.asking(opened, self.suite, self.judge, self.settings)

    def run(self, terminal: Terminal, opened: LoadedModel, what: str) -> Evaluation:
        """Ask one model everything, under a progress bar."""
        return suite_opts.evaluated(terminal, opened, self.suite, self.judge, self.settings, what)

    def before_and_after(
        self, terminal: Terminal, opened: LoadedModel, target: Target, repaired: Path, stopwatch: Stopwatch
    ) -> dict[str, Evaluation]:
        """Ask the model as it is, as it was repaired and lies on the disk, and the aligned model where one is known.

        ``opened`` must not be used afterwards.
        """
        with stopwatch.step("evaluate"):
            found = {BEFORE: self.run(terminal, opened, "before")}
            if target.name == "adapter":
                opened = opened.with_adapter(repaired)
                found[AFTER] = self.run(terminal, opened, "after")
                found[ALIGNED] = self.run(terminal, opened.without_adapter(), "aligned")
            else:
                opened = opened.with_weights(open_model_checkpoint(str(repaired)))
                found[AFTER] = self.run(terminal, opened, "after")
                if target.aligned is not None:
                    opened = opened.with_weights(target.aligned)
                    found[ALIGNED] = self.run(terminal, opened, "aligned")
        return {name: found[name] for name in (ALIGNED, BEFORE, AFTER) if name in found}


def examination_from(
    calibration: Sequence[Record],
    evaluate: str | None,
    harmless: str | None,
    task: list[str] | None,
    judge: list[str] | None,
    settings: EvaluationSettings,
) -> tuple[list[Record], EvaluationPlan | None]:
    """Build the examination that the options ask for.

    Args:
        calibration: The harmful rows that the repair may learn from.
        evaluate: Harmful requests, ``none``, or None to keep some of the calibration rows apart.
        harmless: Harmless requests that look harmful.
        task: ``NAME=DATA`` for each of the user's tasks.
        judge: The judges, the first one's numbers at the top; None for the refusal patterns.
        settings: How to ask.

    Returns:
        The rows left for calibration, and the examination; None where nothing is to be asked.

    Raises:
        UserError: An evaluation prompt stands in the calibration rows too.
    """
    chosen = suite_opts.judge_from(judge)
    kept, asked = list(calibration), suite_opts.prompts_from(None if evaluate == "none" else evaluate)
    if evaluate is None and calibration:
        kept, asked = hold_out(calibration, _HELD_OUT_FRACTION, _HELD_OUT_MOST, _HELD_OUT_SEED)
    suite = Suite(asked, suite_opts.prompts_from(harmless), *task_opts.tasks_from(task))
    require_disjoint(kept, [record for records in suite.parts().values() for record in records])
    if not (suite.harmful or suite.harmless or suite.tasks):
        return kept, None
    return kept, EvaluationPlan(suite, chosen, settings)
