"""Stage 3: repairs a fine-tuned model, one method a file."""

from antidote_llm.repair.method import RepairMethod, method_named, methods, score_method, solve_method
from antidote_llm.repair.planning import Plan, Problem, needs_harmful, plan
from antidote_llm.repair.record import RepairRecord
from antidote_llm.repair.running import HarmfulData, PlannedRepair, plan_repair
from antidote_llm.repair.writing import predicted_patch_bytes, rehearse_repair, write_repair

__all__ = [
    "HarmfulData",
    "Plan",
    "PlannedRepair",
    "Problem",
    "RepairMethod",
    "RepairRecord",
    "method_named",
    "methods",
    "needs_harmful",
    "plan",
    "plan_repair",
    "predicted_patch_bytes",
    "rehearse_repair",
    "score_method",
    "solve_method",
    "write_repair",
]
