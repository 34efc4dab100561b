"""Settings that take one of a few words: declared here once, for the command line, YAML, Python and the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "float64"]
SaveDtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
TemplateName: TypeAlias = Literal["auto", "chat", "alpaca", "plain"]
TokenPolicy: TypeAlias = Literal["all", "prompt", "response"]
MatchMode: TypeAlias = Literal["exact", "prefix"]
TargetName: TypeAlias = Literal["adapter", "delta", "weight"]
EngineName: TypeAlias = Literal["auto", "memory", "streaming"]
# What a repair's scores are ranked within, how a fraction becomes a count, and how an input's norm is taken over rows.
Scope: TypeAlias = Literal["row", "matrix", "layer", "global"]
Rounding: TypeAlias = Literal["nearest", "official"]
Statistic: TypeAlias = Literal["rms", "mean_norm", "token_rms"]
AttackKind: TypeAlias = Literal["lora", "full"]
# The stages of a training, by the paper's words; and the steps of a recipe, by their commands.
TrainingStage: TypeAlias = Literal["alignment", "finetuning"]
StageName: TypeAlias = Literal["align", "finetune", "repair", "evaluate"]
# What an answer to a harmful or harmless request is.
Outcome: TypeAlias = Literal["refusal", "harmful", "helpful", "incoherent"]
# The groups of the command line's help, in order.
Group: TypeAlias = Literal["main", "target", "strength", "training", "measure", "data", "resources", "advanced"]
GROUPS: Mapping[Group, str] = {
    "main": "Options that most need",
    "target": "What is changed",
    "strength": "How, and how strong",
    "training": "How it is trained",
    "measure": "What is measured",
    "data": "Data and prompts",
    "resources": "Resources",
    "advanced": "Advanced",
}
