"""Who answers an evaluation's questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from antidote_llm.choices import DtypeName
from antidote_llm.cli import suite_options as suite_opts
from antidote_llm.cli.finished import inputs_sha256
from antidote_llm.cli.prompts_said import say_prompts
from antidote_llm.cli.terminal import Terminal
from antidote_llm.errors import UserError
from antidote_llm.evaluation.backends.backend import Backend, Remembering, TransformersBackend
from antidote_llm.evaluation.backends.served import evaluate_served, sendable
from antidote_llm.evaluation.backends.vllm import VllmBackend
from antidote_llm.evaluation.endpoint import Endpoint
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import Judge, identity_of
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite, questions_sha256
from antidote_llm.io.cache import KeptLines
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.load import LoadedModel


class Respondent(Protocol):
    """Answers suites."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the answers depend on besides the questions, as JSON values."""
        ...

    @property
    def folders(self) -> list[Path]:
        """The folders that it was opened from."""
        ...

    def asking(self, suite: Suite, judge: Judge, settings: EvaluationSettings) -> dict[str, Any]:
        """Return what makes an evaluation this one, as JSON values, and refuse what cannot be asked."""
        ...

    def say_prompts(self, terminal: Terminal, suite: Suite, settings: EvaluationSettings) -> str:
        """Say which template prompts go through, and return what was said."""
        ...

    def evaluated(
        self, terminal: Terminal, suite: Suite, judge: Judge, settings: EvaluationSettings, what: str
    ) -> Evaluation:
        """Answer under a progress bar, and have the answers judged."""
        ...


@dataclass(frozen=True)
class OpenedRespondent:
    """A model that was opened here, with the backend that generates for it."""

    opened: LoadedModel
    backend: Backend

    @classmethod
    def of(cls, opened: LoadedModel, backend: str | None, dtype: DtypeName) -> OpenedRespondent:
        """Let a model answer by itself, or give its memory back and let vLLM answer for it.

        Raises:
            UserError: vLLM takes no adapter on another.
        """
        if backend != VllmBackend.name:
            return cls(opened, Remembering(TransformersBackend(opened.model)))
        if opened.beneath:
            raise UserError(
                "--backend vllm takes one adapter: merge those before it into MODEL, or leave --backend out"
            )
        opened.model.to("meta")
        engine = VllmBackend(
            opened.base.folder,
            tokenizer=opened.tokenizer.name_or_path if opened.tokenizer is not None else None,
            adapter=opened.adapter.folder if opened.adapter else None,
            max_rank=_rank(opened.adapter) if opened.adapter else 0,
            dtype=dtype,
            trust_remote_code=opened.trust_remote_code,
        )
        return cls(opened, Remembering(engine))

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of the model's files, its type and device, and the backend where it is another."""
        other = {} if self.backend.name == TransformersBackend.name else {"backend": self.backend.name}
        return {**self.opened.identity, "files": inputs_sha256(self.opened), **other}

    @property
    def folders(self) -> list[Path]:
        """The folders of the checkpoints."""
        return [read.folder for read in self.opened.checkpoints]

    def asking(self, suite: Suite, judge: Judge, settings: EvaluationSettings) -> dict[str, Any]:
        """Return questions, stop ids, judge and settings."""
        return suite_opts.asking(self.opened, suite, judge, settings)

    def say_prompts(self, terminal: Terminal, suite: Suite, settings: EvaluationSettings) -> str:
        """Say which template prompts go through."""
        records = [record for part in suite.parts().values() for record in part]
        return say_prompts(terminal, self.opened, settings.renderer(self.opened.tokenizer), records)

    def evaluated(
        self, terminal: Terminal, suite: Suite, judge: Judge, settings: EvaluationSettings, what: str
    ) -> Evaluation:
        """Answer under a progress bar."""
        return suite_opts.evaluated(terminal, self.opened, suite, judge, settings, what, self.backend)


@dataclass(frozen=True)
class ServedRespondent:
    """A model that is served already."""

    server: Endpoint

    @property
    def identity(self) -> dict[str, Any]:
        """The address and the name there: what answers is the server's business."""
        return {"endpoint": {"url": self.server.url, "model": self.server.model}}

    @property
    def folders(self) -> list[Path]:
        """None: nothing is opened."""
        return []

    def asking(self, suite: Suite, judge: Judge, settings: EvaluationSettings) -> dict[str, Any]:
        """Return conversations, judge and settings."""
        return {
            "suite": questions_sha256(sendable(suite, judge, settings)),
            "judge": identity_of(judge),
            "settings": settings.model_dump(mode="json"),
        }

    def say_prompts(
        self,
        terminal: Terminal,
        suite: Suite,
        settings: EvaluationSettings,  # noqa: ARG002 - the server's template is not chosen here
    ) -> str:
        """Say that the server renders prompts itself."""
        said = "prompts go through the server's own template" if suite.parts() else ""
        if said:
            terminal.say(said)
        return said

    def evaluated(
        self, terminal: Terminal, suite: Suite, judge: Judge, settings: EvaluationSettings, what: str
    ) -> Evaluation:
        """Answer under a progress bar; what was answered before a server went down is not asked again."""
        kept = KeptLines("answers", {**self.identity, **self.asking(suite, judge, settings)})
        total = sum(map(len, suite.parts().values()))
        if len(kept):
            terminal.say(f"{len(kept)} of {total} answers are kept from a run that was cut off ({kept.path})")
        finished = False
        try:
            with terminal.stages("answers") as moved:
                moved(what, 0, total)
                found = evaluate_served(
                    self.server,
                    suite,
                    judge,
                    settings,
                    progress=partial(moved, what),
                    kept=kept,
                    judging=lambda name: partial(moved, f"{what}: {name}"),
                )
            finished = True
        finally:
            kept.close(remove=finished)
        return found


def _rank(adapter: Checkpoint) -> int:
    """Return the largest rank of an adapter's matrices."""
    patterns = adapter.config.get("rank_pattern")
    ranks = [adapter.config.get("r"), *(patterns.values() if isinstance(patterns, Mapping) else ())]
    return max(rank for rank in ranks if isinstance(rank, int))


def asking_under(
    respondent: Respondent, suite: Suite, judge: Judge, conditions: Mapping[str, EvaluationSettings]
) -> dict[str, Any]:
    """Return what makes the evaluation under every condition this one.

    Raises:
        UserError: Names the first condition under which a prompt cannot be asked.
    """
    found = {}
    for name, settings in conditions.items():
        try:
            found[name] = respondent.asking(Suite(suite.harmful), judge, settings)
        except UserError as error:
            raise UserError(f"condition {name}: {error}; or name other conditions with --condition") from error
    return found
