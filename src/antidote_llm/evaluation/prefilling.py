"""Openings that stand where the answer begins: the model goes on from them as from words of its own.

Prefilling an affirmative opening is the simplest attack that an aligned model must stand (Andriushchenko et al. 2024,
arXiv:2404.02151; Qi et al. 2024, arXiv:2406.05946): many refusals are no more than their first tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from antidote_llm.data import Record, Renderer
from antidote_llm.data.chat import ChatTemplate
from antidote_llm.data.records import Turn
from antidote_llm.data.thoughts import continuing
from antidote_llm.errors import UserError


def opening_ids(renderer: Renderer, records: Sequence[Record], opening: str) -> list[list[int]]:
    """Return, for each record, the tokens of an opening as they follow those of its prompt.

    The white space that the chat template puts before an answer stands before the opening, a thought that the prompt
    opens is closed, and neither the end of the turn nor any white space follows. Where a token would straddle the
    border of prompt and opening the two are encoded apart, as rows of data are.

    Args:
        renderer: Renders the prompts.
        records: Harmful prompts.
        opening: The first words of the answer.

    Raises:
        UserError: The tokenizer has no token for a part of the opening.
    """
    if renderer.tokenizer.unk_token_id in _encoded(renderer, opening):
        raise UserError(
            f"the tokenizer has no words for the opening '{opening}': pass --prefill in the model's own words"
        )
    chat = ChatTemplate(renderer.tokenizer, renderer.thinking) if renderer.template == "chat" else None
    return [_after_prompt(renderer, chat, record, opening) for record in records]


def _after_prompt(renderer: Renderer, chat: ChatTemplate | None, record: Record, opening: str) -> list[int]:
    if record.input_ids is not None:
        return _encoded(renderer, opening)
    prompt = renderer.prompt_text(record)
    said = opening if record.text is not None else _said(renderer, chat, record, opening, prompt)
    return renderer.continued(prompt, said)


def _said(renderer: Renderer, chat: ChatTemplate | None, record: Record, opening: str, prompt: str) -> str:
    """Return the opening with what the template puts before an answer, and nothing behind it."""
    if chat is None:
        return opening
    turns = record.conversation()
    if renderer.system is not None and all(turn.role != "system" for turn in turns):
        turns = (Turn("system", renderer.system), *turns)
    before, found, _ = chat.said(turns, opening, prompt, record.origin).rpartition(opening)
    return before + opening if found else continuing(prompt, opening)


def _encoded(renderer: Renderer, text: str) -> list[int]:
    """Return the tokens of a text by themselves: a record's text is used as it is."""
    return renderer.prompts([Record(text=text)])[0]
