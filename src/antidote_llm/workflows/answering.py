"""The model under test: one that is opened here, or one that is served already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from antidote_llm.choices import DtypeName
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.backends import Backend, CachingBackend, TransformersBackend
from antidote_llm.evaluation.endpoint import Endpoint
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import identity_of
from antidote_llm.evaluation.served import evaluate_served, prepare_conversations
from antidote_llm.evaluation.suite import questions_sha256
from antidote_llm.evaluation.vllm_backend import VllmBackend
from antidote_llm.io.cache import KeptLines
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.load import LoadedModel
from antidote_llm.workflows.inputs import inputs_sha256
from antidote_llm.workflows.opening import say_prompts
from antidote_llm.workflows.questions import EvaluationPlan, evaluated, identity_of_questions
from antidote_llm.workflows.reporter import Reporter


class ModelUnderTest(Protocol):
    """Answers the questions of an evaluation."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that the answers depend on besides the questions, as JSON values."""
        ...

    @property
    def folders(self) -> list[Path]:
        """The folders that it was opened from."""
        ...

    def identity_of(self, plan: EvaluationPlan) -> dict[str, Any]:
        """Return what makes an evaluation this one, as JSON values, and refuse what cannot be asked."""
        ...

    def say_prompts(self, reporter: Reporter, plan: EvaluationPlan) -> str:
        """Say how prompts are put, and return what was said."""
        ...

    def evaluate(self, reporter: Reporter, plan: EvaluationPlan, what: str) -> Evaluation:
        """Answer everything, and have the answers judged."""
        ...


@dataclass(frozen=True)
class OpenedModel:
    """A model that is opened here, with the backend that generates for it."""

    opened: LoadedModel
    backend: Backend

    @classmethod
    def of(cls, opened: LoadedModel, backend: str | None, dtype: DtypeName) -> OpenedModel:
        """Let a model answer by itself, or give its memory back and let vLLM answer for it.

        Raises:
            UserError: vLLM takes no adapter on another.
        """
        if backend != VllmBackend.name:
            return cls(opened, CachingBackend(TransformersBackend(opened.model)))
        if opened.lower_adapters:
            raise UserError(
                f"{setting('backend')} vllm takes one adapter: merge those before it into MODEL, or leave it out"
            )
        opened.model.to("meta")
        engine = VllmBackend(
            opened.base.folder,
            tokenizer=opened.tokenizer.name_or_path if opened.tokenizer is not None else None,
            adapter=opened.adapter.folder if opened.adapter else None,
            max_rank=_largest_rank(opened.adapter) if opened.adapter else 0,
            dtype=dtype,
            trust_remote_code=opened.trust_remote_code,
        )
        return cls(opened, CachingBackend(engine))

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of the model's files, its type and device, and the backend where it is another."""
        other = {} if self.backend.name == TransformersBackend.name else {"backend": self.backend.name}
        return {**self.opened.identity, "files": inputs_sha256(self.opened), **other}

    @property
    def folders(self) -> list[Path]:
        """The folders of the checkpoints."""
        return [read.folder for read in self.opened.checkpoints]

    def identity_of(self, plan: EvaluationPlan) -> dict[str, Any]:
        """Return questions, stop ids, judge and settings."""
        return identity_of_questions(self.opened, plan.suite, plan.judge, plan.settings)

    def say_prompts(self, reporter: Reporter, plan: EvaluationPlan) -> str:
        """Say which template prompts go through."""
        return say_prompts(reporter, self.opened, plan.settings.renderer(self.opened.tokenizer), plan.records())

    def evaluate(self, reporter: Reporter, plan: EvaluationPlan, what: str) -> Evaluation:
        """Answer with the backend."""
        return evaluated(reporter, self.opened, plan, what, self.backend)


@dataclass(frozen=True)
class ServedModel:
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

    def identity_of(self, plan: EvaluationPlan) -> dict[str, Any]:
        """Return conversations, judge and settings."""
        return {
            "suite": questions_sha256(prepare_conversations(plan.suite, plan.judge, plan.settings)),
            "judge": identity_of(plan.judge),
            "settings": plan.settings.model_dump(mode="json"),
        }

    def say_prompts(self, reporter: Reporter, plan: EvaluationPlan) -> str:
        """Say that the server renders prompts itself."""
        said = "prompts go through the server's own template" if plan.suite.parts() else ""
        if said:
            reporter.say(said)
        return said

    def evaluate(self, reporter: Reporter, plan: EvaluationPlan, what: str) -> Evaluation:
        """Ask the server; what was answered before it went down is not asked again."""
        kept = KeptLines("answers", {**self.identity, **self.identity_of(plan)})
        total = sum(map(len, plan.suite.parts().values()))
        if len(kept):
            reporter.say(f"{len(kept)} of {total} answers are kept from a run that was cut off ({kept.path})")
        finished = False
        try:
            with reporter.stages("answers") as moved:
                moved(what, 0, total)
                found = evaluate_served(
                    self.server,
                    plan.suite,
                    plan.judge,
                    plan.settings,
                    progress=partial(moved, what),
                    kept=kept,
                    judging=lambda name: partial(moved, f"{what}: {name}"),
                )
            finished = True
        finally:
            kept.close(remove=finished)
        return found


def identity_under_conditions(model: ModelUnderTest, plans: Mapping[str, EvaluationPlan]) -> dict[str, Any]:
    """Return what makes the evaluation under every condition this one.

    Raises:
        UserError: Names the first condition under which a prompt cannot be asked.
    """
    found = {}
    for name, plan in plans.items():
        try:
            found[name] = model.identity_of(plan)
        except UserError as error:
            raise UserError(
                f"condition {name}: {error.text}; or name other conditions with {setting('condition')}"
            ) from error
    return found


def _largest_rank(adapter: Checkpoint) -> int:
    patterns = adapter.config.get("rank_pattern")
    ranks = [adapter.config.get("r"), *(patterns.values() if isinstance(patterns, Mapping) else ())]
    return max(rank for rank in ranks if isinstance(rank, int))
