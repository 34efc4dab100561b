"""How the command line shows the name of a setting in an error."""

from __future__ import annotations

from antidote_llm.registry import option_name

# The settings whose options have another name.
_OTHERS = {"tasks": "--task", "cache": "--no-cache"}


def option_of_setting(name: str) -> str:
    """Return the option of a setting."""
    return _OTHERS.get(name) or option_name(name)
