"""Renders a chat template as transformers does, by its own function, but with limits of time, memory and size.

A template is a program of whoever made the tokenizer, and may have no end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from antidote_llm.artifacts.bounded import Budget, CallError, OverBudgetError, bounded_call
from antidote_llm.errors import UserError

_FUNCTION = "transformers.utils.chat_template_utils:render_jinja_template"
_BUDGET = Budget(seconds=5.0)
# All renderings together may take this much more for each: a hundred times what the slowest known one needs.
_SECONDS_EACH = 0.1


class RenderingError(Exception):
    """What a template says about turns that it does not render."""


class ChatRenderer:
    """Renders conversations with one template.

    Args:
        tokenizer: Its special tokens are variables of the template.
        template: The template's text.
        way_out: What the user is told to do about a template without an end.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        way_out: str = "use --template alpaca or plain, or name another tokenizer",
    ) -> None:
        self._tokenizer, self._template, self._way_out = tokenizer, template, way_out
        self._seconds_left = _BUDGET.seconds

    def render(self, conversation: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """Return the text of a conversation, as ``apply_chat_template`` of the tokenizer.

        Args:
            conversation: What was said: JSON values.
            variables: What the template is told besides, ``add_generation_prompt`` and ``tools`` among them.

        Raises:
            RenderingError: The template does not render these turns.
            UserError: It takes too much time or memory.
        """
        if type(self._tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
            return self._by_own_code(conversation, variables)
        # As transformers does before it renders.
        said = [{key: value for key, value in turn.items() if value is not None} for turn in conversation]
        told = {**self._tokenizer.special_tokens_map, **variables}
        try:
            if self._seconds_left <= 0:
                raise OverBudgetError("takes too long, row for row")
            reply = bounded_call(
                _FUNCTION,
                {"conversations": [said], "chat_template": self._template, **told},
                replace(_BUDGET, seconds=self._seconds_left),
            )
        except OverBudgetError as error:
            whose = f"{self._tokenizer.name_or_path}: " if self._tokenizer.name_or_path else ""
            raise UserError(f"{whose}rendering with the tokenizer's chat template {error}: {self._way_out}") from error
        except CallError as error:
            raise RenderingError(str(error)) from error
        self._seconds_left = min(_BUDGET.seconds, self._seconds_left + _SECONDS_EACH - reply.seconds)
        return str(reply.value[0][0])

    def _by_own_code(self, conversation: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Render with a tokenizer that has its own way to: trusted code, not a template."""
        turns = [dict(turn) for turn in conversation]
        try:
            return str(
                self._tokenizer.apply_chat_template(turns, tokenize=False, chat_template=self._template, **variables)
            )
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RenderingError(str(error)) from error
