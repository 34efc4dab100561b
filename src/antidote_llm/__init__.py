"""Antidote: repairs the safety of fine-tuned language models, reversibly and with proof.

These names are the public interface; everything else may change. Importing the package loads nothing heavy: a name is
loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antidote_llm.choices import Outcome
    from antidote_llm.data.reading import read_records
    from antidote_llm.data.records import Record
    from antidote_llm.decision.compare import Comparison
    from antidote_llm.errors import UserError
    from antidote_llm.evaluation.evaluation import Evaluation
    from antidote_llm.evaluation.judge import Judge, Verdict
    from antidote_llm.evaluation.tasks.task import Task
    from antidote_llm.models.load import LoadedModel, load_model
    from antidote_llm.models.target import resolve_target
    from antidote_llm.patching.patch import Patch, read_patch
    from antidote_llm.repairs.method import (
        ColumnScore,
        MatchedKnob,
        SiteInputs,
        methods,
        score_method,
        solve_method,
    )
    from antidote_llm.training.defense import (
        Cost,
        StageData,
        TrainingJob,
        alignment_defense,
        defenses,
        finetuning_defense,
    )
    from antidote_llm.training.objective import Objective
    from antidote_llm.training.settings import TrainingSettings
    from antidote_llm.workflows.patch import apply_patch, revert_patch
    from antidote_llm.workflows.python_api import compare, evaluate, repair, train
    from antidote_llm.workflows.reporter import Reporter
    from antidote_llm.workflows.step_by_step import collect, method

__version__ = "0.1.0"

_MODULES = {
    "choices": ("Outcome",),
    "data.reading": ("read_records",),
    "data.records": ("Record",),
    "decision.compare": ("Comparison",),
    "errors": ("UserError",),
    "evaluation.evaluation": ("Evaluation",),
    "evaluation.judge": ("Judge", "Verdict"),
    "evaluation.tasks.task": ("Task",),
    "models.load": ("LoadedModel", "load_model"),
    "models.target": ("resolve_target",),
    "patching.patch": ("Patch", "read_patch"),
    "repairs.method": ("ColumnScore", "MatchedKnob", "SiteInputs", "methods", "score_method", "solve_method"),
    "training.defense": ("Cost", "StageData", "TrainingJob", "alignment_defense", "defenses", "finetuning_defense"),
    "training.objective": ("Objective",),
    "training.settings": ("TrainingSettings",),
    "workflows.patch": ("apply_patch", "revert_patch"),
    "workflows.python_api": ("compare", "evaluate", "repair", "train"),
    "workflows.reporter": ("Reporter",),
    "workflows.step_by_step": ("collect", "method"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ColumnScore",
    "Comparison",
    "Cost",
    "Evaluation",
    "Judge",
    "LoadedModel",
    "MatchedKnob",
    "Objective",
    "Outcome",
    "Patch",
    "Record",
    "Reporter",
    "SiteInputs",
    "StageData",
    "Task",
    "TrainingJob",
    "TrainingSettings",
    "UserError",
    "Verdict",
    "alignment_defense",
    "apply_patch",
    "collect",
    "compare",
    "defenses",
    "evaluate",
    "finetuning_defense",
    "load_model",
    "method",
    "methods",
    "read_patch",
    "read_records",
    "repair",
    "resolve_target",
    "revert_patch",
    "score_method",
    "solve_method",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'antidote_llm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"antidote_llm.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
