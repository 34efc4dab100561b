"""Prompts as token rows: padding, the tokens that end an answer, prefilled openings, and the room in a model's context.

Nothing here computes with the model, so that torch is imported only to build tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from antidote_llm.data.chat_template import ChatTemplate
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.data.thoughts import continuing
from antidote_llm.errors import UserError, listed, setting

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(slots=True)
class Row:
    """One prompt, and the model's answer so far."""

    prompt: tuple[int, ...]
    answer: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """The prompt and the answer so far: what the model reads to generate the next token."""
        return [*self.prompt, *self.answer]

    @property
    def length(self) -> int:
        """How many tokens :attr:`ids` has."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Limits:
    """When answers end, and how large a batch may be.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        eos_ids: Tokens that end an answer.
        pad_id: Any token id.
        batch_size: Most rows in a batch.
        batch_tokens: Most tokens in a batch, padding included.
    """

    max_new_tokens: int
    eos_ids: Collection[int]
    pad_id: int
    batch_size: int
    batch_tokens: int

    def append(self, row: Row, token: int) -> bool:
        """Append a token to a row's answer, unless it ends the answer, and return whether the answer continues."""
        if token in self.eos_ids:
            return False
        row.answer.append(token)
        return len(row.answer) < self.max_new_tokens


def longest_first(rows: Iterable[Row]) -> list[Row]:
    """Sort rows by length, so that a batch needs little padding."""
    return sorted(rows, key=lambda row: row.length, reverse=True)


def padded(rows_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return left-padded token ids and their mask, both (rows, tokens)."""
    import torch

    width = max(map(len, rows_ids))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows_ids]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows_ids]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def halved_batch_size(batch: Sequence[Row], error: torch.OutOfMemoryError) -> int:
    """Return the batch size to try after a batch did not fit into the device's memory.

    Raises:
        UserError: The batch was a single row.
    """
    if len(batch) == 1:
        raise UserError(
            f"a prompt of {batch[0].length} tokens does not fit into the device's memory: "
            f"lower {setting('max_new_tokens')} or leave the prompt out"
        ) from error
    return len(batch) // 2


def stop_ids(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> tuple[int, ...]:
    """Return the tokens that end an answer: the model's, the tokenizer's, and those that close the template's turn.

    A base model that was fine-tuned on a chat template often still names its old end-of-sequence token.
    """
    configured = getattr(model.generation_config, "eos_token_id", None), getattr(model.config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *_turn_end_ids(tokenizer, renderer)}
    for value in configured:
        found.update(value if isinstance(value, Iterable) else [value])
    return tuple(sorted(token for token in found if token is not None))


def pad_id(tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> int:
    """Return a token id to pad with."""
    own = tokenizer.pad_token_id
    return int(own) if own is not None else next(iter(eos_ids), 0)


def _turn_end_ids(tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> set[int]:
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    return special & set(renderer.closing_ids())


def room_for_answers(model: PreTrainedModel | PeftModel, prompts_ids: Collection[Sequence[int]]) -> int | None:
    """Return how many positions of the model the longest prompt leaves, None where the model has no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(positions) - max(map(len, prompts_ids), default=0) if positions else None


def require_room(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Collection[Sequence[int]],
    max_new_tokens: int,
    origins: Sequence[str] = (),
) -> None:
    """Refuse prompts that leave no room for their answers. The message says where they are from, by ``origins``.

    Raises:
        UserError: A prompt is empty, or the longest and its answer take more than the model's positions.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    if not all(prompts_ids):
        raise UserError("a prompt renders to no tokens: leave it out")
    room = room_for_answers(model, prompts_ids)
    if prompts_ids and room is not None and room < max_new_tokens:
        lengths = list(map(len, prompts_ids))
        longest = max(lengths)
        fits = longest + room - max_new_tokens
        too_long = [origin for origin, length in zip(origins, lengths, strict=False) if length > fits and origin]
        origin = origins[lengths.index(longest)] if origins else ""
        where = f"{origin}: " if origin else ""
        fix = f"pass {setting('max_new_tokens')} {room} or less" if room > 0 else _leave_out(origin, too_long)
        raise UserError(
            f"{where}the longest prompt has {longest} tokens and its answer up to {max_new_tokens}, "
            f"more than the model's {longest + room} positions: {fix}"
        )


def _leave_out(longest: str, too_long: Sequence[str]) -> str:
    others = [origin for origin in dict.fromkeys(too_long) if origin != longest]
    if not others:
        return "leave it out"
    return f"leave it out, and likewise {listed(others)}"


def opening_ids(renderer: Renderer, records: Sequence[Record], opening: str) -> list[list[int]]:
    """Return, for each record, the tokens of an opening as they follow those of its prompt.

    The white space that the chat template puts before an answer comes before the opening. A thought that the prompt
    opens is closed first. Neither the end of the turn nor white space follows. Where a token would cross the boundary
    between prompt and opening, the two are encoded separately, as rows of data are.

    Args:
        renderer: Renders the prompts.
        records: Harmful prompts.
        opening: The first words of the answer.

    Raises:
        UserError: The tokenizer has no token for a part of the opening.
    """
    if renderer.tokenizer.unk_token_id in _encoded(renderer, opening):
        raise UserError(
            f"the tokenizer has no words for the opening '{opening}': "
            f"pass {setting('prefill')} in the model's own words"
        )
    chat = ChatTemplate(renderer.tokenizer, renderer.thinking) if renderer.template == "chat" else None
    return [_opening_after_prompt(renderer, chat, record, opening) for record in records]


def _opening_after_prompt(renderer: Renderer, chat: ChatTemplate | None, record: Record, opening: str) -> list[int]:
    if record.input_ids is not None:
        return _encoded(renderer, opening)
    prompt = renderer.prompt_text(record)
    text = opening if record.text is not None else _rendered_opening(renderer, chat, record, opening, prompt)
    return renderer.continued(prompt, text)


def _rendered_opening(renderer: Renderer, chat: ChatTemplate | None, record: Record, opening: str, prompt: str) -> str:
    """Return the opening with what the template puts before an answer, and nothing after it."""
    if chat is None:
        return opening
    turns = record.conversation()
    if renderer.system is not None and all(turn.role != "system" for turn in turns):
        turns = (Turn("system", renderer.system), *turns)
    before, found, _ = chat.said(turns, opening, prompt, record.origin).rpartition(opening)
    return before + opening if found else continuing(prompt, opening)


def _encoded(renderer: Renderer, text: str) -> list[int]:
    """Return the tokens of a text by itself."""
    return renderer.prompts([Record(text=text)])[0]
