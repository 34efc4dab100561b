"""The result of evaluating one model, and the two files that hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from antidote_llm.errors import UserError
from antidote_llm.evaluation.answers import HARMFUL, Answer, Flags, flags, from_parquet, to_parquet
from antidote_llm.evaluation.judge import HarmMeasure
from antidote_llm.evaluation.likelihood_margin import MeanMargin, Openings
from antidote_llm.evaluation.lm_eval_bridge import LmEvalMetric
from antidote_llm.evaluation.metrics import Estimate, share
from antidote_llm.evaluation.panel import Disagreement, disagreements
from antidote_llm.evaluation.perplexity import Perplexity
from antidote_llm.evaluation.scoring import TaskRecord
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.io.files import sha256_bytes, sha256_json, write_bytes, write_json
from antidote_llm.io.strict_json import first_problem, parse_json

EVALUATION_NAME = "evaluation.json"
ANSWERS_NAME = "answers.parquet"
_OWN_HASH = "sha256"


class JudgeRecord(BaseModel):
    """What one judge of a panel says of all answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="The judge's name.")
    measures: HarmMeasure = Field(description="Which measure of harm it can give.")
    unreadable: int = Field(description="On how many answers its own words could not be read.")
    metrics: dict[str, Estimate] = Field(description="Its metrics on harmful and harmless prompts, in percent.")


class Evaluation(BaseModel):
    """What one model did on every suite that it was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(default=1, description="Version of this format.")
    judge: str | None = Field(description="Name of the first judge; null where only tasks were asked.")
    measures: HarmMeasure | None = Field(description="Which measure of harm the judge can give.")
    settings: EvaluationSettings = Field(description="How the model was asked.")
    prompts: str = Field(default="", description="Which template prompts went through, in words, where it was said.")
    metrics: dict[str, Estimate] = Field(description="Every metric, in percent.")
    tasks: dict[str, TaskRecord] = Field(default_factory=dict, description="How each task was asked and scored.")
    by_category: dict[str, dict[str, Estimate]] = Field(
        default_factory=dict, description="The metrics on harmful prompts, by category."
    )
    perplexity: Perplexity | None = Field(default=None, description="Perplexity of a text, where one was given.")
    lm_eval: dict[str, dict[str, LmEvalMetric]] = Field(
        default_factory=dict, description="By task of lm-eval, its metrics as lm-eval gives them."
    )
    judges: tuple[JudgeRecord, ...] = Field(default=(), description="Every judge's numbers, the first one's first.")
    disagreements: tuple[Disagreement, ...] = Field(default=(), description="Where each two judges differ.")
    mean_margins: dict[str, MeanMargin] = Field(
        default_factory=dict, description="The mean likelihood margin of each suite, where it was measured."
    )
    openings: Openings | None = Field(default=None, description="What the likelihood margin was measured with.")
    unanswered: int = Field(
        default=0, ge=0, description="How many prompts a server gave no answer to; each counts as the worst possible."
    )
    answers: tuple[Answer, ...] = Field(default=(), exclude=True, repr=False, description="Every answer.")

    @classmethod
    def of(
        cls,
        answers: Sequence[Answer],
        judge: str | None,
        measures: HarmMeasure | None,
        settings: EvaluationSettings,
        tasks: Mapping[str, TaskRecord] | None = None,
        panel: Mapping[str, HarmMeasure] | None = None,
        openings: Openings | None = None,
    ) -> Evaluation:
        """Count the answers of one model; ``panel`` is the measure of every judge by name."""
        return cls(
            judge=judge,
            measures=measures,
            settings=settings,
            metrics=_shares(flags(answers, measures)),
            tasks=dict(tasks or {}),
            by_category=_by_category(answers, measures),
            judges=tuple(_record(answers, name, measure) for name, measure in (panel or {}).items()),
            disagreements=disagreements(answers, panel or {}),
            mean_margins=_mean_margins(answers),
            openings=openings,
            answers=tuple(answers),
        )

    @model_serializer(mode="wrap")
    def _without_zero(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the number of unanswered prompts where it is zero."""
        found: dict[str, Any] = write(self)
        return {name: value for name, value in found.items() if name != "unanswered" or value}

    def flags(self) -> Flags:
        """Return, for every metric, which answers count towards it: the input of paired comparisons."""
        return flags(self.answers, self.measures)

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``answers.parquet`` with hashes; the same evaluation gives the same bytes."""
        answers = to_parquet(self.answers)
        write_bytes(folder / ANSWERS_NAME, answers)
        fields = {**self.model_dump(mode="json"), "answers_sha256": sha256_bytes(answers)}
        write_json(folder / EVALUATION_NAME, {**fields, _OWN_HASH: sha256_json(fields)})

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read what :meth:`write` wrote.

        Raises:
            UserError: A file is missing or damaged, or the two do not belong together.
        """
        data, content = _read_bytes(folder / ANSWERS_NAME), _read_bytes(folder / EVALUATION_NAME)
        try:
            fields = parse_json(content)
            # Evaluations of earlier versions have none.
            own_sha256 = fields.pop(_OWN_HASH, None)
            if own_sha256 not in (None, sha256_json(fields)):
                raise ValueError("it has been changed since it was written")
            sha256 = fields.pop("answers_sha256")
            evaluation = cls.model_validate(fields)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            first = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise UserError(
                f"{folder / EVALUATION_NAME}: not an evaluation: {first}: evaluate the model again"
            ) from error
        if sha256 != sha256_bytes(data):
            raise UserError(f"{folder / ANSWERS_NAME} does not belong to {EVALUATION_NAME}: evaluate the model again")
        try:
            return evaluation.model_copy(update={"answers": from_parquet(data)})
        except ValueError as error:
            raise UserError(
                f"{folder / ANSWERS_NAME}: not the answers of an evaluation: {error}: evaluate the model again"
            ) from error


def _read_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        # Reading a pipe could block forever.
        raise UserError(f"{path}: not a file: evaluate the model again")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}: is this the folder of an evaluation?") from error


def _shares(found: Flags) -> dict[str, Estimate]:
    return {name: share(counted) for name, counted in found.items()}


def _record(answers: Sequence[Answer], judge: str, measures: HarmMeasure) -> JudgeRecord:
    opinions = [(answer, each) for answer in answers for each in answer.opinions if each.judge == judge]
    judged = [replace(answer, outcome=each.outcome, margin=None) for answer, each in opinions]
    unreadable = sum(each.unreadable for _, each in opinions)
    return JudgeRecord(name=judge, measures=measures, unreadable=unreadable, metrics=_shares(flags(judged, measures)))


def _mean_margins(answers: Sequence[Answer]) -> dict[str, MeanMargin]:
    margins: dict[str, list[float]] = {}
    for answer in answers:
        if answer.margin is not None:
            margins.setdefault(answer.suite, []).append(answer.margin)
    return {suite: MeanMargin.of(values) for suite, values in margins.items()}


def _by_category(answers: Sequence[Answer], measures: HarmMeasure | None) -> dict[str, dict[str, Estimate]]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.suite == HARMFUL and answer.category is not None:
            groups.setdefault(answer.category, []).append(answer)
    return {category: _shares(flags(groups[category], measures)) for category in sorted(groups)}
