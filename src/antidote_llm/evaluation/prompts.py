"""Prompts on their way to an answer, and how far they may go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.data.chat_template import ChatTemplate
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.data.thoughts import continuing
from antidote_llm.errors import UserError


@dataclass(slots=True)
class Row:
    """One prompt, and what the model has answered so far."""

    prompt: tuple[int, ...]
    answer: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """The tokens that the model has to read to go on."""
        return [*self.prompt, *self.answer]

    @property
    def length(self) -> int:
        """How many tokens that is."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where answers end, and how much is held at once.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        eos_ids: Tokens that end an answer.
        pad_id: Any token id.
        batch_size: Most rows at once.
        batch_tokens: Most tokens at once, padding included.
    """

    max_new_tokens: int
    eos_ids: Collection[int]
    pad_id: int
    batch_size: int
    batch_tokens: int

    def hear(self, row: Row, token: int) -> bool:
        """Take a row's next token, and say whether its answer goes on."""
        if token in self.eos_ids:
            return False
        row.answer.append(token)
        return len(row.answer) < self.max_new_tokens


def longest_first(rows: Iterable[Row]) -> list[Row]:
    """Sort rows, so that those of like length stand together."""
    return sorted(rows, key=lambda row: row.length, reverse=True)


def padded(rows_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left-padded token ids and their mask, both (rows, tokens)."""
    width = max(map(len, rows_ids))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows_ids]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows_ids]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def half_of(tried: Sequence[Row], error: torch.OutOfMemoryError) -> int:
    """Return how many rows to try next.

    Raises:
        UserError: There was but one.
    """
    if len(tried) == 1:
        raise UserError(
            f"a prompt of {tried[0].length} tokens does not fit into the device's memory: "
            "lower --max-new-tokens or leave the prompt out"
        ) from error
    return len(tried) // 2


def stop_ids(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> tuple[int, ...]:
    """Return the tokens that end an answer: the model's, the tokenizer's, and those that close the template's turn.

    A base model that was fine-tuned on a chat template often still names its old end of sequence.
    """
    configured = getattr(model.generation_config, "eos_token_id", None), getattr(model.config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *_closing(tokenizer, renderer)}
    for value in configured:
        found.update(value if isinstance(value, Iterable) else [value])
    return tuple(sorted(token for token in found if token is not None))


def pad_id(tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> int:
    """Return a token id to pad with."""
    own = tokenizer.pad_token_id
    return int(own) if own is not None else next(iter(eos_ids), 0)


def _closing(tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> set[int]:
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    return special & set(renderer.closing_ids())


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
