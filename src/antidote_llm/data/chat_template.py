"""A tokenizer's chat template: with a fixed date and closed thoughts; no turn is dropped, and answers end correctly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from antidote_llm.data.chat_rendering import Rendering, TemplateRenderer
from antidote_llm.data.records import Role, Turn
from antidote_llm.data.thoughts import closed, continuing, without_thought
from antidote_llm.data.turn_borders import Borders, Marks, find_borders, probes, squeezed
from antidote_llm.errors import UserError, first_line, setting
from antidote_llm.io.template_sandbox import FIXED_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Qwen3, GLM and SmolLM3 ask for the first name, DeepSeek and Granite for the second.
_NO_THINKING = {"enable_thinking": False, "thinking": False}
_DATE = FIXED_DATE.strftime("%d %b %Y")
# Ten times the longest known template: the process that renders it compiles it too.
_MOST_CHARACTERS = 1 << 18
_OTHER_TEMPLATE = f"use {setting('template')} alpaca or plain"


class ChatTemplate:
    """Renders conversations.

    Args:
        tokenizer: Has a chat template.
        thinking: Whether the model may think before it replies, where the template allows it. Otherwise the template
            is asked to disable thinking, and a thought that the prompt opens anyway is closed.

    Raises:
        UserError: The template is not text, is too long, or is overridden by the tokenizer's own code.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, thinking: bool) -> None:
        from transformers import PreTrainedTokenizerBase

        self._tokenizer, self._thinking = tokenizer, thinking
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not isinstance(template, str):
            raise UserError(
                "the tokenizer's chat template is no text, or none of several is named default: fetch the tokenizer "
                f"again, or {_OTHER_TEMPLATE}"
            )
        if len(template) > _MOST_CHARACTERS:
            raise UserError(
                f"the tokenizer's chat template has {len(template):,} characters, more than {_MOST_CHARACTERS:,}: "
                f"{_OTHER_TEMPLATE}, or name another tokenizer"
            )
        if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
            raise UserError(
                f"the tokenizer's class {type(tokenizer).__name__} renders conversations with code of its own, beside "
                f"its chat template: {_OTHER_TEMPLATE}, or another {setting('tokenizer')}"
            )
        self._template, self._renderer = template, TemplateRenderer(template)
        self._prepared: dict[tuple[tuple[Turn, ...], bool], Rendering] = {}
        self._known: dict[tuple[Role, ...], Borders | None] = {}
        self._dropped: dict[tuple[Role, ...], Role | None] = {}

    def prepare(self, conversations: Sequence[tuple[Sequence[Turn], str | None]]) -> None:
        """Render the prompts of a batch of rows, and their answers where they have one, in one exchange.

        The results are the same without this: :meth:`prompt` and :meth:`answer` then render row by row. What was
        prepared before is discarded.
        """
        asked: dict[tuple[tuple[Turn, ...], bool], None] = {}
        for turns, response in conversations:
            asked[(*turns,), True] = None
            if response is not None:
                asked[(*turns, Turn("assistant", response)), False] = None
        variables = [self._variables(turns, generates, self._in_parts) for turns, generates in asked]
        # The list of renderings is shorter where one takes too much: that one is then the last.
        self._prepared = dict(zip(asked, self._renderer.render_many(variables), strict=False))

    def prompt(self, turns: Sequence[Turn], origin: str) -> str:
        """Return the text up to where the model starts to answer.

        Raises:
            UserError: The template cannot render these turns, or leaves one out.
        """
        text = self._opened(turns, self._checked(turns, origin, add_generation_prompt=True))
        dropped = self._leaves_out(turns)
        for turn in turns[:-1]:
            if turn.role == dropped or not _holds(text, without_thought(turn.content)):
                raise UserError(
                    f"{_at(origin)}the tokenizer's chat template leaves out a {turn.role} turn before the prompt: "
                    "put it into the prompt itself, or leave it out"
                )
        if not _holds(text, turns[-1].content):
            raise UserError(f"{_at(origin)}the tokenizer's chat template leaves out the prompt: {_OTHER_TEMPLATE}")
        return text if self._thinking else closed(text)

    def _opened(self, turns: Sequence[Turn], text: str) -> str:
        """Return a prompt's text up to where the assistant's own text begins."""
        borders = self._borders(turns)
        if borders is None or (self._thinking and borders.thought):
            return text
        return text.removesuffix(borders.thought) + borders.header if text.endswith(borders.thought) else text

    def answer(self, turns: Sequence[Turn], response: str, prompt_text: str, origin: str) -> str:
        """Return the text that follows the prompt: the response, and what ends the assistant's turn."""
        borders = self._borders(turns)
        end = self.end_of_turn if borders is None else borders.end
        return self.said(turns, response, prompt_text, origin) + end

    def said(self, turns: Sequence[Turn], response: str, prompt_text: str, origin: str) -> str:
        """Return a response as it follows the prompt's text, without what ends the assistant's turn."""
        said, borders = continuing(prompt_text, response), self._borders(turns)
        whole = self._checked([*turns, Turn("assistant", response)], origin, add_generation_prompt=False)
        if borders is None or borders.lead is None or not whole.startswith(prompt_text):
            return said
        rest = whole.removeprefix(prompt_text)
        # A template may strip a thought that should stay, or not put the answer where its own prompt ends.
        wanted = said if self._thinking else without_thought(said)
        found = rest.removesuffix(borders.tail)
        fits = rest.endswith(borders.tail) and wanted.strip() in found
        known = [squeezed(lead + text) for lead in ("", borders.lead) for text in (wanted, said)]
        return found if fits and squeezed(found) in known else said

    @cached_property
    def end_of_turn(self) -> str:
        """What ends the assistant's turn; the end-of-sequence token where the template renders no answer."""
        asked = Turn("user", "a")
        for turns in ([asked], [Turn("system", "a"), asked]):
            if (borders := self._borders(turns)) is not None:
                return borders.end
        self._checked([asked, Turn("assistant", "a")], "", add_generation_prompt=False)
        return str(self._tokenizer.eos_token or "")

    def render(
        self, turns: Sequence[Turn], add_generation_prompt: bool = False, more: Mapping[str, str] | None = None
    ) -> str:
        """Render turns as the template does.

        Args:
            turns: The conversation.
            add_generation_prompt: Whether the assistant is to answer.
            more: Further variables for the template.

        Raises:
            TemplateError: It cannot render them.
        """
        if not more and (prepared := self._prepared.get((tuple(turns), add_generation_prompt))) is not None:
            if isinstance(prepared, Exception):
                raise prepared
            return prepared
        return self._renderer.render({**self._variables(turns, add_generation_prompt, self._in_parts), **(more or {})})

    def _checked(self, turns: Sequence[Turn], origin: str, *, add_generation_prompt: bool) -> str:
        try:
            return self.render(turns, add_generation_prompt)
        except TemplateError as error:
            reason = first_line(error)
            rest = [turn for turn in turns if turn.role != "system"]
            if len(rest) < len(turns) and self._tried(rest, add_generation_prompt) is not None:
                raise UserError(
                    f"{_at(origin)}the tokenizer's chat template takes no system prompt ({reason}): "
                    "leave it out, or put its text into the prompt itself"
                ) from error
            raise UserError(
                f"{_at(origin)}the tokenizer's chat template cannot render a prompt ({reason}): {_OTHER_TEMPLATE}"
            ) from error
        except UserError as error:
            raise UserError(f"{_at(origin)}{error.text}") from error

    def _tried(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str | None:
        """Render turns; None where the template cannot render them."""
        try:
            return self.render(turns, add_generation_prompt)
        except TemplateError:
            return None

    def _borders(self, turns: Sequence[Turn]) -> Borders | None:
        """Return the text around an answer to turns of these roles; None where the template renders no answer."""
        roles = tuple(turn.role for turn in turns)
        if roles not in self._known:
            *before, answer, later = probes([*turns, Turn("assistant", ""), Turn("user", "")], self._template)
            self._known[roles] = find_borders(self._tried, before, answer, later, self._marks)
        return self._known[roles]

    def _leaves_out(self, turns: Sequence[Turn]) -> Role | None:
        """Return the role whose turns before the prompt are dropped, as probes show: real words may occur elsewhere."""
        roles = tuple(turn.role for turn in turns)
        if roles not in self._dropped:
            probed = probes(turns, self._template)
            text = self._tried(probed, True)
            missing = [] if text is None else [turn.role for turn in probed[:-1] if turn.content not in text]
            self._dropped[roles] = next(iter(missing), None)
        return self._dropped[roles]

    @cached_property
    def _marks(self) -> Marks:
        tokenizer = self._tokenizer
        special = {*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder}
        return Marks(special, str(tokenizer.bos_token or ""), str(tokenizer.eos_token or ""))

    @cached_property
    def _in_parts(self) -> frozenset[Role]:
        """Roles whose contents the template expects as lists of parts, as templates of multimodal models do."""
        found: frozenset[Role] = frozenset()
        turns: dict[Role, list[Turn]] = {
            "user": [Turn("user", "")],
            "assistant": [Turn("user", ""), Turn("assistant", "")],
            "system": [Turn("system", ""), Turn("user", "")],
        }
        for role, conversation in turns.items():
            probed = probes(conversation, self._template)
            if not self._shows(probed, found) and self._shows(probed, found | {role}):
                found |= {role}
        return found

    def _shows(self, turns: Sequence[Turn], in_parts: frozenset[Role]) -> bool:
        """Whether a rendering holds the contents, as text and not as a printed list."""
        try:
            text = self._renderer.render(self._variables(turns, False, in_parts))
        except TemplateError:
            return False
        written = (f"{quote}text{quote}: {quote}{turn.content}" for turn in turns for quote in "'\"")
        return all(turn.content in text for turn in turns) and not any(each in text for each in written)

    def _variables(
        self, turns: Sequence[Turn], add_generation_prompt: bool, in_parts: frozenset[Role]
    ) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [
            {
                "role": turn.role,
                "content": [{"type": "text", "text": turn.content}] if turn.role in in_parts else turn.content,
            }
            for turn in turns
        ]
        return {
            **self._tokenizer.special_tokens_map,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "date_string": _DATE,
            **({} if self._thinking else _NO_THINKING),
        }


def _holds(text: str, content: str) -> bool:
    """Whether a text holds a content, ignoring white space: RWKV's template drops empty lines."""
    return squeezed(content) in squeezed(text)


def _at(origin: str) -> str:
    return f"{origin}: " if origin else ""
