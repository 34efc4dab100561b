"""From records to token ids: chat template, Alpaca template, or as it is.

Every row knows which of its tokens are prompt and which are response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from antidote_llm.choices import TemplateName
from antidote_llm.data.chat_template import ChatTemplate
from antidote_llm.data.records import Record, Turn
from antidote_llm.errors import UserError, setting, tokenizer_errors
from antidote_llm.io.files import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The instruction-only prompt of Alpaca, as the published code trains with it: a line end after the last heading.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)
# Rows whose chat template is rendered in one exchange with the process that renders.
_BATCH_ROWS, _BATCH_CHARACTERS = 128, 1_000_000


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """Token ids of one row: the prompt is ``input_ids[:response_start]``, the response the rest."""

    input_ids: list[int]
    response_start: int


class Renderer:
    """Turns records into token ids for one tokenizer and template.

    Args:
        tokenizer: The model's tokenizer; None serves rows of ``input_ids`` alone.
        template: ``auto`` is the tokenizer's chat template where it has one, the Alpaca prompt otherwise.
        system: System prompt of every row that has a prompt and no system prompt of its own.
        thinking: Whether the model may think before it replies. Otherwise a thought that the chat template opens is
            closed at once, so that the reply itself follows.

    Raises:
        UserError: ``chat`` is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        template: TemplateName = "auto",
        *,
        system: str | None = None,
        thinking: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        has_chat = tokenizer is not None and bool(tokenizer.chat_template)
        if template == "chat" and not has_chat:
            raise UserError(f"the tokenizer has no chat template: use {setting('template')} alpaca or plain")
        self.template: TemplateName = ("chat" if has_chat else "alpaca") if template == "auto" else template
        self.chosen_by_tokenizer = template == "auto" or self.template == "chat"
        self.system, self.thinking = system, thinking
        self._chat = ChatTemplate(self.tokenizer, thinking) if self.template == "chat" else None

    @property
    def described(self) -> str:
        """How prompts become the model's input, in words."""
        if self.template == "chat":
            return "prompts go through the tokenizer's chat template"
        if self.template == "plain":
            return "prompts go in as they are: --template plain"
        if self.chosen_by_tokenizer:
            return (
                "prompts go through the Alpaca prompt, as the tokenizer has no chat template: --template changes that"
            )
        return "prompts go through the Alpaca prompt: --template alpaca"

    def rows(self, records: Sequence[Record]) -> list[TokenizedRow]:
        """Render whole rows, response included and closed by the end-of-turn or end-of-sequence token."""
        return [self._row(record) for record in self._prepared(records, with_response=True)]

    def prompts(self, records: Sequence[Record]) -> list[list[int]]:
        """Render prompts alone, up to where the model starts to answer."""
        return [
            list(record.input_ids[: record.response_start or None])
            if record.input_ids is not None
            else self._encode(self.prompt_text(record), special=self._chat is None and record.text is None)
            for record in self._prepared(records, with_response=False)
        ]

    def _prepared(self, records: Sequence[Record], *, with_response: bool) -> Iterator[Record]:
        """Yield the records; a chat template is rendered for a batch of them before its first is yielded."""
        batch: list[Record] = []
        characters = 0
        for record in records:
            batch.append(record)
            characters += len(record.prompt or "") + sum(len(turn.content) for turn in record.history)
            characters += len(record.response or "")
            if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
                yield from self._batch(batch, with_response)
                batch, characters = [], 0
        yield from self._batch(batch, with_response)

    def _batch(self, batch: Sequence[Record], with_response: bool) -> Sequence[Record]:
        if self._chat is not None:
            self._chat.prepare(
                [
                    (self._turns(record), record.response if with_response else None)
                    for record in batch
                    if record.prompt is not None and record.text is None and record.input_ids is None
                ]
            )
        return batch

    def prompt_text(self, record: Record) -> str:
        """Return the text before the answer.

        Raises:
            UserError: There is no prompt, or the template cannot hold the earlier turns.
        """
        if record.text is not None:
            return record.text
        if record.prompt is None:
            raise UserError(f"{record.origin or 'a row'}: no prompt to answer")
        turns = self._turns(record)
        if self._chat is not None:
            return self._chat.prompt(turns, record.origin)
        asked = ALPACA.format(prompt=record.prompt) if self.template == "alpaca" else record.prompt
        return "\n\n".join([*self._system_texts(turns[:-1], record.origin), asked])

    def closing_ids(self) -> list[int]:
        """Return the tokens that close every answer."""
        if self._chat is not None:
            return self._encode(self._chat.end_of_turn, special=False)
        end = self.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def _turns(self, record: Record) -> tuple[Turn, ...]:
        turns = record.conversation()
        if self.system is None or any(turn.role == "system" for turn in turns):
            return turns
        return (Turn("system", self.system), *turns)

    def _system_texts(self, before: Sequence[Turn], origin: str) -> list[str]:
        """Return the system prompt, the only turn that can precede a prompt without a chat template."""
        if any(turn.role != "system" for turn in before):
            raise UserError(
                f"{origin or 'a row'}: template {self.template} has no place for earlier turns: "
                f"use {setting('template')} chat, or leave the row out"
            )
        return [turn.content for turn in before if turn.content.strip()]

    def _row(self, record: Record) -> TokenizedRow:
        if record.input_ids is not None:
            return TokenizedRow(list(record.input_ids), record.response_start)
        if record.text is not None:
            return TokenizedRow(self._encode(record.text, special=False), 0)
        prompt = self.prompt_text(record)
        special = self._chat is None
        prompt_ids = self._encode(prompt, special=special)
        if record.response is None:
            return TokenizedRow(prompt_ids, len(prompt_ids))
        answer = record.response
        if self._chat is not None:
            answer = self._chat.answer(self._turns(record), record.response, prompt, record.origin)
        whole = prompt_ids + self._continued(prompt, answer, special=special)
        if self._chat is None and whole[-1:] != (end := self.closing_ids()):
            whole = [*whole, *end]
        return TokenizedRow(whole, len(prompt_ids))

    def continued(self, prompt: str, answer: str) -> list[int]:
        """Return the tokens of a text that follows a prompt's text; both are used as they are."""
        return self._continued(prompt, answer, special=False)

    def _continued(self, prompt: str, answer: str, *, special: bool) -> list[int]:
        prompt_ids, whole = self._encode(prompt, special=special), self._encode(prompt + answer, special=special)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        # Where a token would span the border, prompt and answer are encoded separately, as when the model generates.
        found = self._encode(answer, special=False)
        if self._reads(prompt_ids + found) == (wanted := self._reads(whole)):
            return found
        # Some tokenizers put a space before every text, but not after a line end.
        line_end, following = self._encode("\n", special=False), self._encode(f"\n{answer}", special=False)
        own = following[len(line_end) :]
        return own if following[: len(line_end)] == line_end and self._reads(prompt_ids + own) == wanted else found

    def _reads(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        with tokenizer_errors(self.tokenizer.name_or_path, "encode a text"):
            ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        # A tokenizer that appends its end token would leave no place for the answer.
        if (
            special
            and ids
            and ids[-1] == self.tokenizer.eos_token_id
            and not text.endswith(str(self.tokenizer.eos_token))
        ):
            ids = ids[:-1]
        return ids

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            UserError: The model came without one.
        """
        if self._tokenizer is None:
            raise UserError(f"the model folder has no tokenizer: pass {setting('tokenizer')}, or rows of input_ids")
        return self._tokenizer


def rendered_sha256(rows: Sequence[TokenizedRow]) -> str:
    """Return the hash of rendered rows: token ids and response starts, in order."""
    return sha256_json([[row.input_ids, row.response_start] for row in rows])


def check_token_ids(records: Sequence[Record], rows: Sequence[TokenizedRow], vocabulary_size: int) -> None:
    """Refuse rows whose token ids have no embedding.

    Raises:
        UserError: A row holds an id outside the vocabulary, or no token at all.
    """
    for index, (record, row) in enumerate(zip(records, rows, strict=True)):
        where = record.origin or f"row {index}"
        if not row.input_ids:
            raise UserError(f"{where}: renders to no tokens")
        if (largest := max(row.input_ids)) >= vocabulary_size:
            raise UserError(
                f"{where}: token id {largest} is outside the model's vocabulary of {vocabulary_size}: "
                "the row or the tokenizer belongs to another model: leave the row out, or name the model's own "
                "tokenizer"
            )


def check_lengths(records: Sequence[Record], rows: Sequence[TokenizedRow], positions: int | None) -> None:
    """Refuse rows longer than the model's positions; None of those is no limit.

    Raises:
        UserError: Names the first row that is too long.
    """
    for index, (record, row) in enumerate(zip(records, rows, strict=True)):
        if positions is not None and len(row.input_ids) > positions:
            raise UserError(
                f"{record.origin or f'row {index}'}: {len(row.input_ids)} tokens, more than the model's "
                f"{positions} positions: shorten the row or leave it out"
            )
