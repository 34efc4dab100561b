"""Limits of an adapter's configuration: patterns that end, ranks that its file has, lists that are not too long.

peft matches the patterns against the name of every module, and takes memory for the ranks, before it reads the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from antidote_llm.errors import UserError
from antidote_llm.io.bounded_calls import CallError, OverBudgetError, matching_places
from antidote_llm.models.adapter import ADAPTER_FILE
from antidote_llm.models.checkpoint import Checkpoint

_LISTS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
_BY_MODULE = ("rank_pattern", "alpha_pattern")
_ALL_LINEAR = "all-linear"
# Of rank and scale, in peft.
_DEFAULT = 8


def require_limits(adapter: Checkpoint, modules: Sequence[str]) -> None:
    """Refuse an adapter whose configuration would take peft far more time or memory than its file justifies.

    Args:
        adapter: A LoRA adapter.
        modules: The names of all modules of the model that it is for.

    Raises:
        UserError: Names the setting.
    """
    for name in (*_LISTS, *_BY_MODULE):
        value = adapter.config.get(name)
        if isinstance(value, (list, dict)) and len(value) > len(modules):
            raise _bad(adapter, f"{name} has {len(value)} entries, and the model {len(modules)} modules")
    for name in _BY_MODULE:
        if not isinstance(adapter.config.get(name) or {}, dict):
            raise _bad(adapter, f"{name} is no object of patterns and numbers")
    for name, patterns in _patterns(adapter.config).items():
        _require_end(adapter, name, patterns, modules)
    _require_numbers(adapter)
    _require_ranks(adapter)


def _patterns(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the regular expressions that peft makes of each setting, as it matches whole names with them."""
    found: dict[str, list[str]] = {}
    for name in ("target_modules", "exclude_modules"):
        if isinstance(value := config.get(name), str) and value.lower() != _ALL_LINEAR:
            found[name] = [value]
    found["modules_to_save"] = [rf"(^|.*\.){each}($|\..*)" for each in _strings(config.get("modules_to_save"))]
    found["layers_pattern"] = [
        rf"(?:^|.*?\.){each}\.(?P<idx>\d+)\..*" for each in _strings(config.get("layers_pattern"))
    ]
    for name in _BY_MODULE:
        found[name] = [rf"(.*\.)?({each})$" for each in config.get(name) or {}]
    return found


def _strings(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _require_end(adapter: Checkpoint, name: str, patterns: Sequence[str], modules: Sequence[str]) -> None:
    """Refuse patterns that are invalid or take too long."""
    try:
        for pattern in patterns:
            matching_places([pattern], list(modules))
    except (OverBudgetError, CallError) as error:
        reason = f"matching it with the model's modules {error}" if isinstance(error, OverBudgetError) else f"{error}"
        raise _bad(adapter, f"{name} is no pattern that can be used: {reason}") from error


def _require_numbers(adapter: Checkpoint) -> None:
    """Refuse a rank that is no whole number of at least 1, and a scale that is no finite number."""
    for name, value in _values(adapter.config, "r", "rank_pattern").items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _bad(adapter, f"{name} is {_shown(value)}, no rank")
    for name, value in _values(adapter.config, "lora_alpha", "alpha_pattern").items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not _is_finite(value):
            raise _bad(adapter, f"{name} is {_shown(value)}, no finite number")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _values(config: Mapping[str, Any], name: str, by_module: str) -> dict[str, Any]:
    """Return a number for all modules, peft's default if there is none, and those for some, by the setting's name."""
    named = {f"{by_module} of {_shown(pattern)}": value for pattern, value in (config.get(by_module) or {}).items()}
    return {name: config.get(name, _DEFAULT), **named}


def _require_ranks(adapter: Checkpoint) -> None:
    """Refuse ranks beyond every side of the matrices in the adapter's file, whatever their names."""
    entries = adapter.weights[ADAPTER_FILE].entries.values()
    most = max((side for entry in entries for side in entry.shape), default=0)
    for name, rank in _values(adapter.config, "r", "rank_pattern").items():
        if rank > max(most, _DEFAULT):
            raise _bad(
                adapter, f"{name} is {_shown(rank)}, and its file has no matrix with more than {most} rows or columns"
            )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _bad(adapter: Checkpoint, problem: str) -> UserError:
    return UserError(f"{adapter.reference}: adapter_config.json: {problem}: save or fetch it again")
