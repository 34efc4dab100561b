"""A tokenizer's chat template: a fixed date, thoughts closed, nothing left out unsaid."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from antidote_llm.data.chat_rendering import ChatRenderer, RenderingError
from antidote_llm.data.records import Turn
from antidote_llm.data.thoughts import closed, continuing, without_thought
from antidote_llm.errors import UserError

# Templates that insert today's date would give other tokens tomorrow.
FIXED_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.timezone.utc)
_DATE_CODES = ("a", "A", "b", "B", "d", "e", "H", "I", "j", "m", "M", "p", "S", "u", "y", "Y", "F", "T")
# Qwen3, GLM and SmolLM3 ask for the first name, DeepSeek and Granite for the second.
_NO_THINKING = {"enable_thinking": False, "thinking": False}
_ANY_ANSWER = "zorbik"


class ChatTemplate:
    """Renders conversations.

    Args:
        tokenizer: Has a chat template.
        thinking: Whether the model may think before it replies, as far as the template lets it; else the template is
            told not to, and a thought that the prompt opens all the same is closed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinking: bool) -> None:
        self._tokenizer, self._thinking = tokenizer, thinking
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not isinstance(template, str):
            raise UserError(
                "the tokenizer's chat template is no text, or none of several is named default: fetch the tokenizer "
                "again, or use --template alpaca or plain"
            )
        self._renderer = ChatRenderer(tokenizer, _with_fixed_date(template))

    def prompt(self, turns: Sequence[Turn], origin: str) -> str:
        """Return the text up to where the model starts to answer.

        Raises:
            UserError: The template cannot render these turns, or leaves one out.
        """
        text = self._checked(turns, origin, add_generation_prompt=True)
        for turn in turns[:-1]:
            if not _holds(text, without_thought(turn.content)):
                raise UserError(
                    f"{_at(origin)}the tokenizer's chat template leaves out a {turn.role} turn before the prompt: "
                    "put it into the prompt itself, or leave it out"
                )
        if not _holds(text, turns[-1].content):
            raise UserError(
                f"{_at(origin)}the tokenizer's chat template leaves out the prompt: use --template alpaca or plain"
            )
        return text if self._thinking else closed(text)

    def answer(self, turns: Sequence[Turn], response: str, prompt_text: str, origin: str) -> str:
        """Return the text that follows the prompt's: the response, and what ends the assistant's turn."""
        said = continuing(prompt_text, response)
        whole = self._checked([*turns, Turn("assistant", response)], origin, add_generation_prompt=False)
        rest = whole.removeprefix(prompt_text)
        # A template may strip a thought that is wanted, or not put the answer where its own prompt ends.
        wanted = said if self._thinking else without_thought(said)
        if whole.startswith(prompt_text) and wanted.strip() in rest:
            return rest
        return said + self.end_of_turn

    @cached_property
    def end_of_turn(self) -> str:
        """What the template puts behind an answer; the end-of-sequence token where it puts no answer."""
        turns = [Turn("user", "a"), Turn("assistant", _ANY_ANSWER)]
        _, found, tail = self._checked(turns, "", add_generation_prompt=False).rpartition(_ANY_ANSWER)
        return tail if found else str(self._tokenizer.eos_token or "")

    def _checked(self, turns: Sequence[Turn], origin: str, *, add_generation_prompt: bool) -> str:
        try:
            return self._render(turns, add_generation_prompt)
        except RenderingError as error:
            reason = str(error).strip().split("\n")[0]
            if self._refuses_system(turns, add_generation_prompt):
                raise UserError(
                    f"{_at(origin)}the tokenizer's chat template takes no system prompt ({reason}): "
                    "leave it out, or put its text into the prompt itself"
                ) from error
            raise UserError(
                f"{_at(origin)}the tokenizer's chat template cannot render a prompt ({reason}): "
                "use --template alpaca or plain"
            ) from error

    def _refuses_system(self, turns: Sequence[Turn], add_generation_prompt: bool) -> bool:
        rest = [turn for turn in turns if turn.role != "system"]
        if len(rest) == len(turns):
            return False
        try:
            self._render(rest, add_generation_prompt)
        except RenderingError:
            return False
        return True

    def _render(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        return self._renderer.render(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            add_generation_prompt=add_generation_prompt,
            date_string=FIXED_DATE.strftime("%d %b %Y"),
            **({} if self._thinking else _NO_THINKING),
        )


def _holds(text: str, said: str) -> bool:
    """Whether something is said in a text, with whatever white space: RWKV's template drops empty lines."""
    return "".join(said.split()) in "".join(text.split())


def _at(origin: str) -> str:
    return f"{origin}: " if origin else ""


def _with_fixed_date(template: str) -> str:
    """Return a chat template whose ``strftime_now`` says the fixed date: transformers lets no function be passed in."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f"|replace('%{code}','{FIXED_DATE.strftime(f'%{code}')}')" for code in _DATE_CODES)
    # The empty expression keeps white space at the template's beginning.
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
