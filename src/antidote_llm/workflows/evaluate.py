"""Evaluates a model: harm, refusals, coherence, tasks, and what is measured beyond answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antidote_llm import __version__
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.conditions import AFFIRMATIVE, HARDER, all_condition_settings, longest_first
from antidote_llm.evaluation.endpoint import Endpoint
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import Judge
from antidote_llm.evaluation.likelihood_margin import LikelihoodMargin
from antidote_llm.evaluation.lm_eval_bridge import lm_eval_version, require_lm_eval_tasks, run_lm_eval
from antidote_llm.evaluation.panel import margin_of
from antidote_llm.evaluation.perplexity import PerplexityText, perplexity
from antidote_llm.evaluation.suite import Suite
from antidote_llm.evaluation.vllm_backend import VllmBackend, require_vllm
from antidote_llm.io.files import sha256_json
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.models.load import LoadedModel
from antidote_llm.workflows.answering import ModelUnderTest, OpenedModel, ServedModel, identity_under_conditions
from antidote_llm.workflows.opening import opened
from antidote_llm.workflows.questions import EvaluationPlan, judge_from, prompts_from, settings_from, tasks_from
from antidote_llm.workflows.reporter import Reporter, by_steps
from antidote_llm.workflows.result import complete
from antidote_llm.workflows.specs import EvaluateSpec

_CONDITIONS = "conditions"
_PLAIN = "answering"


@dataclass(frozen=True)
class EvaluateResult:
    """What was measured of one model.

    Attributes:
        name: What the model is called.
        evaluation: What it answered as it was asked.
        conditions: What it answered to the harmful requests under each condition.
    """

    name: str
    evaluation: Evaluation
    conditions: Mapping[str, Evaluation]

    def json_value(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        value = self.evaluation.model_dump(mode="json")
        if self.conditions:
            value[_CONDITIONS] = {name: found.model_dump(mode="json") for name, found in self.conditions.items()}
        return value


def run_evaluation(spec: EvaluateSpec, reporter: Reporter) -> EvaluateResult:
    """Evaluate a model as a spec says, and keep what was found where a folder is named.

    Raises:
        UserError: A setting or an input is wrong, or there is nothing to ask.
    """
    spec.require_sound()
    server = _server(spec)
    judge = judge_from(spec.judge, spec.endpoint, spec.task_endpoint)
    opening = AFFIRMATIVE if spec.prefill == "affirmative" else spec.prefill
    settings = settings_from(spec, prefill=opening, task_max_new_tokens=spec.task_max_new_tokens)
    conditions = all_condition_settings([*(HARDER if spec.harder else ()), *spec.condition], settings)
    endpoint = None
    if spec.task_endpoint is not None:
        endpoint = Endpoint.named(spec.task_endpoint, f"{setting('task_endpoint')} ")
    tasks = tasks_from(spec.tasks, spec.task_rows, endpoint, spec.task_seed)
    plan = EvaluationPlan(Suite(prompts_from(spec.harmful), prompts_from(spec.harmless), *tasks), judge, settings)
    further = _Further.of(spec)
    if server is not None or spec.backend == VllmBackend.name:
        _require_answers_alone(further, judge)
    model: ModelUnderTest
    if server is not None:
        model, measuring = ServedModel(server), None
    else:
        loaded = opened(
            reporter,
            str(spec.model),
            spec.adapter,
            tokenizer=spec.tokenizer,
            dtype=spec.dtype,
            device="cpu" if spec.backend == VllmBackend.name else spec.device,
            trust_remote_code=spec.trust_remote_code,
        )
        measuring = further.ready(loaded)
        model = OpenedModel.of(loaded, spec.backend, spec.dtype)
    name = server.model if server is not None else str(spec.model)
    under = {key: EvaluationPlan(Suite(plan.suite.harmful), judge, harder) for key, harder in conditions.items()}
    return _Evaluating(reporter, model, plan, under, measuring).perform(spec.out, name)


@dataclass(frozen=True)
class _Evaluating:
    reporter: Reporter
    model: ModelUnderTest
    plan: EvaluationPlan
    conditions: Mapping[str, EvaluationPlan]
    measuring: _Measuring | None

    def perform(self, out: str | None, name: str) -> EvaluateResult:
        """Evaluate, or read what is finished already."""
        manifest = self._manifest()
        if out is None:
            found = self._evaluated()
        else:
            folder = ResultFolder(Path(out), manifest, inputs=self.model.folders, sealed=("*",))
            kept: dict[str, Evaluation] = {}

            def write(staging: Path) -> None:
                kept.update(self._evaluated())
                for key, evaluation in kept.items():
                    evaluation.write(_place(staging, key))

            finished_before = complete(folder, write, self.reporter)
            found = self._read(Path(out)) if finished_before else kept
        return EvaluateResult(name, found[_PLAIN], {key: found[key] for key in self.conditions})

    def _manifest(self) -> dict[str, Any]:
        questions = self.model.identity_of(self.plan) if self.plan.suite.parts() else {}
        under = identity_under_conditions(self.model, self.conditions)
        return {
            "kind": "evaluation",
            "version": __version__,
            **self.model.identity,
            **questions,
            **({_CONDITIONS: under} if under else {}),
            **(self.measuring.identity if self.measuring else {}),
        }

    def _evaluated(self) -> dict[str, Evaluation]:
        prompts = self.model.say_prompts(self.reporter, self.plan)
        plans = {_PLAIN: self.plan} if self.plan.suite.parts() else {}
        plans |= self.conditions
        found = longest_first(
            lambda name, suite, settings: self.model.evaluate(
                self.reporter, EvaluationPlan(suite, self.plan.judge, settings), name
            ),
            {name: (plan.suite, plan.settings) for name, plan in plans.items()},
        )
        answered = found.get(_PLAIN) or Evaluation.of([], None, None, self.plan.settings)
        further = self.measuring.measured(self.reporter) if self.measuring else {}
        known = {name: evaluation.model_copy(update={"prompts": prompts}) for name, evaluation in found.items()}
        return {**known, _PLAIN: answered.model_copy(update={**further, "prompts": prompts})}

    def _read(self, out: Path) -> dict[str, Evaluation]:
        return {name: Evaluation.read(_place(out, name)) for name in (_PLAIN, *self.conditions)}


def _place(out: Path, name: str) -> Path:
    """Return the folder of one evaluation below the result's."""
    return out if name == _PLAIN else out / _CONDITIONS / name


def _server(spec: EvaluateSpec) -> Endpoint | None:
    """Return the served model that is named, None where one is to be opened; the key is the environment's.

    Raises:
        UserError: The address is none, or vLLM is not installed.
    """
    if spec.endpoint is not None:
        return Endpoint.named(spec.endpoint, f"{setting('endpoint')} ")
    if spec.backend == VllmBackend.name:
        require_vllm()
    return None


def _require_answers_alone(further: _Further, judge: Judge) -> None:
    """Refuse what must compute with the model itself, where another program generates its answers.

    Raises:
        UserError: Perplexity, a task of lm-eval, or the likelihood margin is asked for.
    """
    for option, asked in {
        setting("perplexity"): bool(further.text),
        setting("lm_eval"): bool(further.lm_eval),
        f"{setting('judge')} {LikelihoodMargin.name}": margin_of(judge) is not None,
    }.items():
        if asked:
            others = f"{setting('endpoint')} and {setting('backend')}"
            raise UserError(f"{option} needs the model itself: leave it out, or {others}")


@dataclass(frozen=True)
class _Further:
    """What is to be measured beyond answers, before a model is opened."""

    text: Sequence[Record]
    window: int | None
    stride: int | None
    lm_eval: tuple[str, ...]
    rows: int | None

    @classmethod
    def of(cls, spec: EvaluateSpec) -> _Further:
        """Read the text, and see that lm-eval and its tasks are there.

        Raises:
            UserError: The text cannot be read, or lm-eval or a task is not there.
        """
        names = tuple(name.strip() for name in (spec.lm_eval or "").split(",") if name.strip())
        if spec.lm_eval is not None:
            require_lm_eval_tasks(names)
        records = read_records(DataSpec.parse(spec.perplexity)) if spec.perplexity else []
        for record in records:
            if record.text is None:
                raise UserError(
                    f"{record.origin}: perplexity needs rows of text: map a column, as in file.csv:text=COLUMN"
                )
        return cls(records, spec.perplexity_window, spec.perplexity_stride, names, spec.task_rows)

    def ready(self, model: LoadedModel) -> _Measuring:
        """Make the text ready for a model.

        Raises:
            UserError: The model has no tokenizer, or a window does not fit it.
        """
        if self.lm_eval and model.tokenizer is None:
            raise UserError(f"the model folder has no tokenizer: pass {setting('tokenizer')} (lm-eval asks in text)")
        text = None
        if self.text:
            text = PerplexityText.of(model.model, model.tokenizer, self.text, self.window, self.stride)
        return _Measuring(model, text, self.lm_eval, self.rows)


@dataclass(frozen=True)
class _Measuring:
    """What is measured of one model beyond its answers."""

    model: LoadedModel
    text: PerplexityText | None
    lm_eval: tuple[str, ...]
    rows: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """All that the results depend on besides the model, as JSON values."""
        found: dict[str, Any] = {}
        if (text := self.text) is not None:
            found["perplexity"] = {
                "text": sha256_json([text.ids, text.start]),
                "window": text.window,
                "stride": text.stride,
            }
        if self.lm_eval:
            found["lm_eval"] = {"tasks": self.lm_eval, "rows": self.rows, "version": lm_eval_version()}
        return found

    def measured(self, reporter: Reporter) -> dict[str, Any]:
        """Measure it, and return the fields of the evaluation."""
        found: dict[str, Any] = {}
        if self.text is not None:
            with reporter.progress("reading", len(self.text.spans()), "windows") as advance:
                found["perplexity"] = perplexity(self.model.model, self.text, progress=by_steps(advance))
        if self.lm_eval:
            reporter.say(f"lm-eval: {', '.join(self.lm_eval)}")
            found["lm_eval"] = run_lm_eval(self.model.model, self.model.tokenizer, self.lm_eval, self.rows)
        return found
