"""Renders a chat template as transformers does, but on a fixed day, without chance, and with limits.

A template is a program of whoever made the tokenizer, and may have no end: it runs in a process that can be stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from antidote_llm.errors import UserError
from antidote_llm.io import template_sandbox
from antidote_llm.io.bounded_calls import Budget, CallError, OverBudgetError, Reply, bounded_call

_FUNCTION = f"{template_sandbox.__name__}:rendered"
_BUDGET = Budget(seconds=5.0)
# All renderings together may take this much more for each: a hundred times what the slowest known one needs.
_SECONDS_EACH = 0.1
# What a template writes around what is said, and how often it may say that: what it gives is searched and tokenized.
_REPLY_BYTES, _REPLY_TIMES = 200_000, 10
_FIX = "use --template alpaca or plain, or name another tokenizer"


def render_template(template: str, variables: Mapping[str, Any], budget: Budget = _BUDGET) -> str:
    """Render a chat template once.

    Args:
        template: The template's text, which is not trusted.
        variables: What it can name: JSON values.
        budget: What it may take.

    Raises:
        TemplateError: It cannot be rendered, or not to the same text twice.
        OverBudgetError: It takes too much time or memory.
    """
    return str(_reply(template, variables, budget).value)


def _reply(template: str, variables: Mapping[str, Any], budget: Budget) -> Reply:
    try:
        most = _REPLY_BYTES + _REPLY_TIMES * len(json.dumps(dict(variables), default=str))
        given = {"template": template, "variables": dict(variables)}
        return bounded_call(_FUNCTION, given, replace(budget, reply_bytes=most))
    except CallError as error:
        raise TemplateError(str(error)) from error


class TemplateRenderer:
    """Renders one template again and again, with a limit for all of it.

    Args:
        template: The template's text.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._seconds_left = _BUDGET.seconds

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render it once more.

        Raises:
            TemplateError: As :func:`render_template`.
            UserError: It takes too much time or memory, alone or with all renderings before.
        """
        try:
            if self._seconds_left <= 0:
                raise OverBudgetError("takes too long, row for row")
            reply = _reply(self._template, variables, replace(_BUDGET, seconds=self._seconds_left))
        except OverBudgetError as error:
            raise UserError(f"rendering with the tokenizer's chat template {error}: {_FIX}") from error
        self._seconds_left = min(_BUDGET.seconds, self._seconds_left + _SECONDS_EACH - reply.seconds)
        return str(reply.value)
