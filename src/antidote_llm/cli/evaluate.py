"""``antidote evaluate``: what a model answers, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from antidote_llm import __version__
from antidote_llm.cli import asking_options as asking_opts
from antidote_llm.cli import calibration_data as data_opts
from antidote_llm.cli import model_options as model_opts
from antidote_llm.cli import suite_options as suite_opts
from antidote_llm.cli import task_options as task_opts
from antidote_llm.cli import utility_options as utility_opts
from antidote_llm.cli.panel_tables import panel_tables
from antidote_llm.cli.respondents import OpenedRespondent, Respondent, ServedRespondent, asking_under
from antidote_llm.cli.tables import outcome_tables, utility_tables
from antidote_llm.cli.terminal import JsonFlag, Terminal
from antidote_llm.errors import UserError
from antidote_llm.evaluation.conditions import longest_first
from antidote_llm.evaluation.endpoint import Endpoint
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import Judge
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.evaluation.suite import Suite
from antidote_llm.io.result_folder import ResultFolder

_CONDITIONS = "conditions"
_AS_ASKED = "answering"


def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder or Hub id of a model, or of an adapter.")
    ] = None,
    adapter: model_opts.AdapterOption = None,
    harmful: Annotated[
        str | None, typer.Option("--harmful", metavar="DATA", help=f"Harmful requests: {suite_opts.DATA_HELP}")
    ] = None,
    harmless: suite_opts.HarmlessOption = None,
    task: suite_opts.TaskOption = None,
    task_rows: task_opts.TaskRowsOption = None,
    task_endpoint: task_opts.TaskEndpointOption = None,
    task_seed: task_opts.TaskSeedOption = 0,
    perplexity: utility_opts.PerplexityOption = None,
    perplexity_window: utility_opts.WindowOption = None,
    perplexity_stride: utility_opts.StrideOption = None,
    lm_eval: utility_opts.LmEvalOption = None,
    judge: suite_opts.JudgeOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keeps evaluation.json and every answer here.")
    ] = None,
    template: suite_opts.TemplateOption = "auto",
    max_new_tokens: suite_opts.MaxNewTokensOption = 64,
    task_max_new_tokens: task_opts.TaskTokensOption = None,
    task_match: suite_opts.TaskMatchOption = "exact",
    system: data_opts.SystemOption = None,
    prefill: asking_opts.PrefillOption = None,
    condition: asking_opts.ConditionOption = None,
    harder: asking_opts.HarderOption = False,
    thinking: data_opts.ThinkingOption = False,
    backend: asking_opts.BackendOption = None,
    endpoint: asking_opts.EndpointOption = None,
    tokenizer: model_opts.TokenizerOption = None,
    dtype: model_opts.DtypeOption = "auto",
    device: model_opts.DeviceOption = "auto",
    trust_remote_code: model_opts.TrustOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure harm, refusal, over-refusal, coherence and task accuracy, each with its 95 % interval.

    Example: antidote evaluate my-model --adapter my-adapter --harmful harmbench@harmbench.csv --out before
    """
    terminal = Terminal(as_json)
    served = asking_opts.server_from(backend, endpoint, model, adapter)
    chosen_judge = suite_opts.judge_from(judge, endpoint, task_endpoint)
    settings = suite_opts.settings_from(
        template, max_new_tokens, task_match, system, thinking, asking_opts.opening_from(prefill), task_max_new_tokens
    )
    conditions = asking_opts.conditions_from(condition, harder, settings, harmful)
    comparer = Endpoint.named(task_endpoint, "--task-endpoint ") if task_endpoint is not None else None
    tasks = task_opts.tasks_from(task, task_rows, comparer, task_seed)
    suite = Suite(suite_opts.prompts_from(harmful), suite_opts.prompts_from(harmless), *tasks)
    further = utility_opts.further_from(perplexity, perplexity_window, perplexity_stride, lm_eval, task_rows)
    if not (suite.parts() or further):
        raise UserError("nothing to ask: pass --harmful, --harmless, --task, --perplexity or --lm-eval")
    if served is not None or backend == "vllm":
        asking_opts.require_answers_alone(further, chosen_judge)
    respondent: Respondent
    if served is not None:
        respondent, measuring = ServedRespondent(served), None
    else:
        on = "cpu" if backend == "vllm" else device
        opened = model_opts.opened(terminal, str(model), adapter, tokenizer, dtype, on, trust_remote_code)
        measuring = further.ready(opened)
        respondent = OpenedRespondent.of(opened, backend, dtype)
    name = served.model if served is not None else str(model)
    _Job(terminal, respondent, name, suite, chosen_judge, settings, conditions, measuring).perform(out)


@dataclass(frozen=True)
class _Job:
    terminal: Terminal
    respondent: Respondent
    name: str
    suite: Suite
    judge: Judge
    settings: EvaluationSettings
    conditions: dict[str, EvaluationSettings]
    measuring: utility_opts.Measuring | None

    def perform(self, out: Path | None) -> None:
        """Evaluate, keep what was found where a folder is named, and give the result."""
        manifest = self._manifest()
        if out is None:
            found = self._evaluated()
        else:
            folder = ResultFolder(out, manifest, inputs=self.respondent.folders, sealed=("*",))
            if folder.finished:
                self.terminal.say(f"{out} is finished already")
                found = self._read(out)
            else:
                with folder as staging:
                    found = self._evaluated()
                    for name, evaluation in found.items():
                        evaluation.write(_place(staging, name))
        self._tell(found)

    def _manifest(self) -> dict[str, Any]:
        asking = self.respondent.asking(self.suite, self.judge, self.settings) if self.suite.parts() else {}
        under = asking_under(self.respondent, self.suite, self.judge, self.conditions)
        return {
            "kind": "evaluation",
            "version": __version__,
            **self.respondent.identity,
            **asking,
            **({_CONDITIONS: under} if under else {}),
            **(self.measuring.identity if self.measuring else {}),
        }

    def _evaluated(self) -> dict[str, Evaluation]:
        prompts = self.respondent.say_prompts(self.terminal, self.suite, self.settings)
        asked = {_AS_ASKED: (self.suite, self.settings)} if self.suite.parts() else {}
        asked |= {name: (Suite(self.suite.harmful), settings) for name, settings in self.conditions.items()}
        found = longest_first(
            lambda name, suite, settings: self.respondent.evaluated(self.terminal, suite, self.judge, settings, name),
            asked,
        )
        answered = found.get(_AS_ASKED) or Evaluation.of([], None, None, self.settings)
        further = self.measuring.measured(self.terminal) if self.measuring else {}
        told = {name: evaluation.model_copy(update={"prompts": prompts}) for name, evaluation in found.items()}
        return {**told, _AS_ASKED: answered.model_copy(update={**further, "prompts": prompts})}

    def _read(self, out: Path) -> dict[str, Evaluation]:
        return {name: Evaluation.read(_place(out, name)) for name in (_AS_ASKED, *self.conditions)}

    def _tell(self, found: dict[str, Evaluation]) -> None:
        asked, under = found[_AS_ASKED], {name: found[name] for name in self.conditions}
        value = asked.model_dump(mode="json")
        tables = [
            *outcome_tables({self.name: asked.metrics}, {}),
            *panel_tables({self.name: asked}),
            *utility_tables({self.name: asked}),
        ]
        if under:
            value[_CONDITIONS] = {name: evaluation.model_dump(mode="json") for name, evaluation in under.items()}
            for table in outcome_tables({name: evaluation.metrics for name, evaluation in under.items()}, {}):
                table.title, table.columns[0].header = "harmful requests again, by condition", "condition"
                tables.append(table)
        self.terminal.result(value, *tables)


def _place(out: Path, name: str) -> Path:
    """Return the folder of one evaluation below the result's."""
    return out if name == _AS_ASKED else out / _CONDITIONS / name
