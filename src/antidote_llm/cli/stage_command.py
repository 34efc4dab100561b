"""What ``antidote align`` and ``antidote finetune`` do once they know their rows: plan a training, or run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from antidote_llm.choices import DtypeName, SaveDtype, TemplateName
from antidote_llm.cli import model_options as model_opts
from antidote_llm.cli import plan_options as plan_opts
from antidote_llm.cli import training_options as train_opts
from antidote_llm.cli.prompts_said import say_prompts
from antidote_llm.cli.stage import StageJob
from antidote_llm.cli.terminal import Terminal
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.io.resources import Stopwatch
from antidote_llm.training.defense import Defense, StageData
from antidote_llm.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class StageCommand:
    """The options of either command, and the rows that they named."""

    model: str
    out: Path | None
    defense: Defense
    settings: BaseModel
    training: TrainingSettings
    rows: Sequence[Record]
    companion: Sequence[Record]
    references: tuple[Sequence[str], Sequence[str]]
    harmful_ratio: float | None
    merge: bool
    template: TemplateName
    system: str | None
    save_every: int
    report_to: str | None
    save_dtype: SaveDtype
    tokenizer: str | None
    dtype: DtypeName
    trust_remote_code: bool

    def tell(self, terminal: Terminal, flops: float | None) -> None:
        """Print what the training would take."""
        plan_opts.Planned(
            model=self.model,
            tokenizer=self.tokenizer,
            template=self.template,
            system=self.system,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            defense=self.defense,
            settings=self.settings,
            training=self.training,
            rows=self.rows,
            companion=self.companion,
        ).tell(terminal, flops)

    def perform(self, terminal: Terminal) -> None:
        """Train, and write the result."""
        out, stopwatch = plan_opts.required(self.out), Stopwatch()
        with stopwatch.step("open"):
            opened = model_opts.opened(
                terminal, self.model, None, self.tokenizer, self.dtype, "cpu", self.trust_remote_code
            )
        renderer = Renderer(opened.tokenizer, self.template, system=self.system)
        prompts = say_prompts(terminal, opened, renderer, [*self.rows, *self.companion])
        job = StageJob(
            terminal=terminal,
            stopwatch=stopwatch,
            opened=opened,
            defense=self.defense,
            settings=self.settings,
            training=self.training,
            data=StageData(renderer, self.rows, self.companion),
            prompts=prompts,
            references=self.references,
            harmful_ratio=self.harmful_ratio,
            merge=self.merge,
            save_dtype=self.save_dtype,
            save_every=self.save_every,
            report_to=train_opts.listed(self.report_to),
        )
        job.require_sound()
        job.perform(out)
