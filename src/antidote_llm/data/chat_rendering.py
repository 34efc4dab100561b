"""Renders a chat template as transformers does, but with a fixed date, without randomness, and with limits.

A template is a program by whoever made the tokenizer, and may never end: it runs in a process that can be stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jinja2 import TemplateError

from antidote_llm.errors import UserError, setting
from antidote_llm.io import template_sandbox
from antidote_llm.io.bounded_calls import Budget, OverBudgetError, Reply, bounded_calls

_FUNCTION = f"{template_sandbox.__name__}:rendered"
# Each rendering adds to the time for all of them a hundred times what the slowest known template needs. A rendering
# may hold each text of its row several times; it is searched and tokenized, so that its length is limited.
_BUDGET = Budget(seconds=5.0, seconds_each=0.1, reply_bytes=200_000, reply_times=10)

Rendering: TypeAlias = str | TemplateError | UserError


class TemplateRenderer:
    """Renders one template again and again, with a limit for all renderings together.

    Args:
        template: The template's text.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._seconds_left = _BUDGET.seconds

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render the template once.

        Args:
            variables: What it can name: JSON values.

        Raises:
            TemplateError: It cannot be rendered, or not to the same text twice.
            UserError: It takes too much time or memory, alone or with all renderings before.
        """
        (rendering,) = self.render_many([variables])
        if isinstance(rendering, Exception):
            raise rendering
        return rendering

    def render_many(self, variables: Sequence[Mapping[str, Any]]) -> list[Rendering]:
        """Render the template many times in one exchange with the other process.

        Returns:
            The text of each rendering, or what :meth:`render` raises. The list ends with the first that takes too much.
        """
        outcomes = bounded_calls(
            _FUNCTION,
            [{"variables": dict(each)} for each in variables],
            _BUDGET,
            shared={"template": self._template},
            seconds_left=self._seconds_left,
        )
        renderings: list[Rendering] = []
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                self._seconds_left = outcome.seconds_left
                renderings.append(str(outcome.value))
            elif isinstance(outcome, OverBudgetError):
                renderings.append(
                    UserError(
                        f"rendering with the tokenizer's chat template {outcome}: use {setting('template')} alpaca or "
                        "plain, or name another tokenizer"
                    )
                )
            else:
                renderings.append(TemplateError(str(outcome)))
        return renderings
