"""How the command line shows the name of a setting in an error."""

from __future__ import annotations

from antidote_llm.errors import option_name


def option_of_setting(name: str) -> str:
    """Return the option of a setting, as the specs name it."""
    # Imported late: the command's first help needs no specs.
    from antidote_llm.workflows import specs
    from antidote_llm.workflows.spec import option_of

    for spec in (specs.RepairSpec, specs.EvaluateSpec):
        if name in spec.model_fields:
            return option_of(spec, name)
    return option_name(name)
