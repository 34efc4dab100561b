"""Antidote: repairs the safety of fine-tuned language models, reversibly and with proof.

These names are the public interface; everything else may change.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antidote_llm.calibration.collect import collect
    from antidote_llm.calibration.moments import Moments
    from antidote_llm.calibration.settings import CalibrationSettings
    from antidote_llm.data.reading import read_records
    from antidote_llm.data.records import Record
    from antidote_llm.data.rendering import Renderer
    from antidote_llm.decision.compare import Comparison, compare
    from antidote_llm.errors import DefectError, UserError
    from antidote_llm.evaluation.evaluate import evaluate
    from antidote_llm.evaluation.evaluation import Evaluation
    from antidote_llm.evaluation.judge import load_judge
    from antidote_llm.evaluation.settings import EvaluationSettings
    from antidote_llm.evaluation.suite import Suite
    from antidote_llm.models.load import LoadedModel, load_model
    from antidote_llm.models.sites import Site
    from antidote_llm.models.target import Target, resolve_target
    from antidote_llm.patching.apply import transform
    from antidote_llm.patching.patch import Patch, read_patch
    from antidote_llm.repairs.method import method_named, methods, score_method, solve_method
    from antidote_llm.repairs.plan import HarmfulData, plan_repair
    from antidote_llm.repairs.record import RepairRecord
    from antidote_llm.repairs.write import write_repair
    from antidote_llm.training.defense import (
        Defense,
        StageData,
        TrainingJob,
        alignment_defense,
        defense_named,
        defenses,
        finetuning_defense,
        run_stage,
    )
    from antidote_llm.training.objective import Objective
    from antidote_llm.training.settings import LoraSettings, TrainingSettings
    from antidote_llm.training.trainer import RunOptions

__version__ = "0.1.0"

# Where it is installed, peft imports it, and it writes about optional kernels and casts with every matrix.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_ROOMS = {
    "calibration": ("CalibrationSettings", "Moments", "collect"),
    "data": ("Record", "Renderer", "read_records"),
    "decision": ("Comparison", "compare"),
    "errors": ("DefectError", "UserError"),
    "evaluation": ("Evaluation", "EvaluationSettings", "Suite", "evaluate", "load_judge"),
    "models": ("LoadedModel", "Site", "Target", "load_model", "resolve_target"),
    "patching": ("Patch", "read_patch", "transform"),
    "repairs": (
        "HarmfulData",
        "RepairRecord",
        "method_named",
        "methods",
        "plan_repair",
        "score_method",
        "solve_method",
        "write_repair",
    ),
    "training": (
        "Defense",
        "TrainingJob",
        "LoraSettings",
        "Objective",
        "RunOptions",
        "StageData",
        "TrainingSettings",
        "alignment_defense",
        "defense_named",
        "defenses",
        "finetuning_defense",
        "run_stage",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "CalibrationSettings",
    "Comparison",
    "DefectError",
    "Defense",
    "Evaluation",
    "EvaluationSettings",
    "HarmfulData",
    "LoadedModel",
    "LoraSettings",
    "Moments",
    "Objective",
    "Patch",
    "Record",
    "Renderer",
    "RepairRecord",
    "RunOptions",
    "Site",
    "StageData",
    "Suite",
    "Target",
    "TrainingJob",
    "TrainingSettings",
    "UserError",
    "alignment_defense",
    "collect",
    "compare",
    "defense_named",
    "defenses",
    "evaluate",
    "finetuning_defense",
    "load_judge",
    "load_model",
    "method_named",
    "methods",
    "plan_repair",
    "read_patch",
    "read_records",
    "resolve_target",
    "run_stage",
    "score_method",
    "solve_method",
    "transform",
    "write_repair",
]


def __getattr__(name: str) -> Any:
    # Rooms are imported when first asked for, so that the command answers --help without waiting for torch.
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'antidote_llm' has no attribute '{name}'")
    return getattr(importlib.import_module(f"antidote_llm.{_ROOM_OF[name]}"), name)
