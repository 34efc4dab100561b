"""From one row of a file to a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from antidote_llm.data.conversations import earlier_turns, require_text, split_conversation, text_of
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.spec import FIELDS, KINDS, Field, quoted
from antidote_llm.data.task_prompts import contextual_prompt, instruction_prompt
from antidote_llm.data.unread import is_filled, is_nan, require_no_more, unread_columns, unread_in_messages
from antidote_llm.errors import UserError, listed

# What else the readers of a format put into a prompt that comes from a column of this name.
_FORMATS: Mapping[str, Mapping[Field, tuple[str, ...]]] = {
    # Alpaca's and Dolly's, and LLaMA-Factory's of the former.
    "instruction": {"input": ("input", "context"), "history": ("history",)},
    # HarmBench's.
    "Behavior": {"context": ("ContextString",)},
}
# Where TRL puts the answer to a column prompt.
_COMPLETION = "completion"
_ANSWERS = ("completion", "chosen", "rejected", "output", "answer", "target", "response", "solution")
# Fields of every row, whatever a mapping says; the others are fields where they are used.
_ALWAYS: tuple[Field, ...] = ("prompt", "response", "text", "input_ids", "messages")
_MOST_LISTED = 20
# What labels say of a token that no model learns.
_NOT_LEARNT = -100


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        cells: Its values by column.
        origin: File and line.
        columns: Column by field, where they differ.
        ignored: Columns and fields of messages that are left out on purpose.
    """

    cells: Mapping[str, Any]
    origin: str
    columns: Mapping[str, str]
    ignored: tuple[str, ...] = field(default=())

    def record(self, require: tuple[Field, ...]) -> Record:
        """Read the fields.

        Args:
            require: Fields that a row of prompt and response or of messages must have.

        Raises:
            UserError: A column is missing, a field is malformed, a required one is missing or empty, or a column
                without which the row means something else cannot be read.
        """
        for name, column in self.columns.items():
            if column not in self.cells and not self._is_nested(column):
                raise UserError(f"{self.origin}: no column '{column}' for {name}: map one of {self._columns()}")
        kind = self._kind()
        if kind is None:
            if nothing := [name for name in self._kinds() if self.columns.get(name, name) in self.cells]:
                raise UserError(f"{self._place(nothing[-1])} is null: fill it or leave the row out")
            raise UserError(
                f"{self.origin}: no field 'prompt' (nor 'messages', 'text' or 'input_ids'): "
                f"map a column, as in {self._example()}; there are {self._columns()}"
            )
        require_no_more(self.cells, self.origin, self._used(kind), prompt=kind in ("prompt", "messages"))
        if kind == "input_ids":
            return self._of_token_ids()
        if kind == "text":
            _require_filled(text := self._text("text"), self._place("text"))
            return Record(text=text, extra=self._extra(kind), origin=self.origin)
        return self._exchange(kind, require)

    def unread(self, record: Record) -> Iterator[str]:
        """Return the columns and fields of messages that may be a part of the record and are not, for a note."""
        kind = self._kind()
        if kind not in ("prompt", "messages"):
            return
        said = f"{text_of(record.conversation())}\n{record.response or ''}"
        yield from unread_columns(self.cells, self._used(kind), said)
        for name in (kind, "response"):
            yield from unread_in_messages(self._value(name), self.ignored)
        if kind == "messages" and self._is_other_answer(record):
            yield self._column("response")
        if isinstance(self.cells.get("label"), bool) and "label" not in self.ignored and _COMPLETION in self.cells:
            yield "label"

    def names(self) -> set[str]:
        """Return the columns, and the fields of messages in them."""
        lists = [cell for cell in self.cells.values() if isinstance(cell, list)]
        return {*self.cells, *(name for cell in lists for item in cell if isinstance(item, Mapping) for name in item)}

    def _kinds(self) -> tuple[Field, ...]:
        # A kind of row that is asked for by name wins over columns that happen to be there.
        return tuple(name for name in KINDS if name in self.columns) or KINDS

    def _kind(self) -> Field | None:
        return next((name for name in self._kinds() if self._value(name) is not None), None)

    def _is_other_answer(self, record: Record) -> bool:
        answer = self._value("response")
        return isinstance(answer, str) and is_filled(answer) and answer != record.response

    def _of_token_ids(self) -> Record:
        ids = self._value("input_ids")
        if not isinstance(ids, list) or not ids or not all(type(item) is int and item >= 0 for item in ids):
            raise UserError(f"{self.origin}: input_ids must be a list of one or more token ids: mend the row")
        start = self._labelled_start(ids) if self.cells.get("response_start") is None else self.cells["response_start"]
        if type(start) is not int or not 0 <= start <= len(ids):
            raise UserError(f"{self.origin}: response_start must be a number from 0 to {len(ids)}: mend the row")
        if _is_padded(self.cells.get("attention_mask")) and "attention_mask" not in self.ignored:
            raise UserError(f"{self.origin}: attention_mask leaves tokens out: write the ids without padding")
        return Record(input_ids=tuple(ids), response_start=start, extra=self._extra("input_ids"), origin=self.origin)

    def _labelled_start(self, ids: list[int]) -> int:
        """Return where the response begins as labels say it, which are -100 before and the ids themselves after."""
        labels = self.cells.get("labels")
        if labels is None or "labels" in self.ignored:
            return 0
        sound = isinstance(labels, list) and len(labels) == len(ids)
        start = next((place for place, label in enumerate(labels) if label != _NOT_LEARNT), len(ids)) if sound else 0
        if not sound or labels[start:] != ids[start:]:
            raise UserError(
                f"{self.origin}: labels are not {_NOT_LEARNT} up to the response and its token ids from there: give "
                "response_start, or pass ignore=labels to count every token"
            )
        return start

    def _exchange(self, kind: Field, require: tuple[Field, ...]) -> Record:
        history, prompt, response = self._said(kind)
        if response is None and self._value("response") is not None:
            response = self._text("response")
        if response is None and "response" in require:
            raise UserError(
                f"{self.origin}: no field 'response': map a column, as in {self._answer_example()}, "
                f"or end the messages with an answer; there are {self._columns()}"
            )
        last = f"{self._place(kind)}: its last " if self._is_conversation(kind) else ""
        _require_filled(prompt, f"{last}prompt" if last else self._place("prompt"))
        if "response" in require:
            _require_filled(response or "", f"{last}answer" if last else self._place("response"))
        history = (*self._system(history), *history)
        return Record(prompt, response, history=history, extra=self._extra(kind), origin=self.origin)

    def _said(self, kind: Field) -> tuple[tuple[Turn, ...], str, str | None]:
        """Return what was said before, the prompt, and the response where messages hold it."""
        answer = self._value("response")
        if not self._is_conversation(kind):
            prompt, history = self._prompt(), self._history()
            if not isinstance(answer, list):
                return history, prompt, None
            asked: object = [{"role": "user", "content": prompt}]
            before, last, response = split_conversation(asked, self._place("response"), answer, self.ignored)
            return (*history, *before), last, response
        for name in ("input", "context", "history"):
            if name in self.columns and is_filled(self._value(name)):
                raise UserError(
                    f"{self._place(kind)} is a whole conversation: leave {name}={self.columns[name]} out of the mapping"
                )
        return split_conversation(self._value(kind), self._place(kind), answer, self.ignored)

    def _is_conversation(self, kind: Field) -> bool:
        return kind == "messages" or isinstance(self._value(kind), list)

    def _prompt(self) -> str:
        """Return the prompt, with what its format puts before and behind it."""
        prompt = self._text("prompt")
        if is_filled(self._value("input")):
            prompt = instruction_prompt(prompt, self._text("input"))
        if is_filled(self._value("context")):
            prompt = contextual_prompt(self._text("context"), prompt)
        return prompt

    def _history(self) -> tuple[Turn, ...]:
        pairs = self._value("history")
        return earlier_turns(pairs, self._place("history"), self.ignored) if is_filled(pairs) else ()

    def _system(self, history: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turn that the row's column ``system`` adds, if any."""
        if self._value("system") is None:
            return ()
        text = self._text("system")
        if text.strip() and any(turn.role == "system" for turn in history):
            raise UserError(f"{self._place('system')}: the messages hold a system prompt already: leave one out")
        return (Turn("system", text),) if text.strip() else ()

    def _column(self, name: Field) -> str:
        """Return the column of a field: the one that is mapped, the one of its own name, or that of the format."""
        if name in self.columns:
            return self.columns[name]
        if name == "response" and self._is_completed():
            return _COMPLETION
        if name not in ("context", "input", "history"):
            return name
        beside = _FORMATS.get(self.columns.get("prompt", "prompt"), {}).get(name, ())
        return next(
            (column for column in beside if column not in self.ignored and is_filled(self.cells.get(column))), ""
        )

    def _is_completed(self) -> bool:
        """Say whether a row is TRL's form of a prompt and its completion."""
        return (
            "response" not in self.cells
            and _COMPLETION in self.cells
            and _COMPLETION not in self.ignored
            and not self.columns.keys() - {"system"}
            and "prompt" in self.cells
        )

    def _value(self, name: Field) -> Any:
        column = self._column(name)
        if column not in self.cells and not self._is_nested(column):
            return None
        value = self.cells[column] if column in self.cells else self._nested(column)
        return None if column in self.ignored or is_nan(value) else value

    def _is_nested(self, column: str) -> bool:
        return "." in column and self._nested(column) is not None

    def _nested(self, column: str) -> Any:
        """Return what stands at a path of dots inside a column; None where there is nothing."""
        value: Any = self.cells
        for name in column.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def _text(self, name: Field) -> str:
        value = self._value(name)
        require_text(value, self._place(name))
        return str(value)

    def _place(self, name: Field) -> str:
        return f"{self.origin}: field '{self._column(name) or name}'"

    def _example(self) -> str:
        conversation = next((name for name, cell in self.cells.items() if cell and isinstance(cell, list)), None)
        if conversation:
            return f"chats.jsonl:messages={quoted(conversation)}"
        known = next((name for name in _FORMATS if name in self.cells), None)
        if known is None:
            return "file.csv:prompt=COLUMN"
        answer = next((f",response={name}" for name in _ANSWERS if name in self.cells), "")
        return f"file.csv:prompt={known}{answer}"

    def _answer_example(self) -> str:
        found = next((name for name in _ANSWERS if name in self.cells), "COLUMN")
        prompt = self.columns.get("prompt", "prompt" if "prompt" in self.cells else "COLUMN")
        return f"file.csv:prompt={quoted(prompt)},response={found}"

    def _columns(self) -> str:
        return listed([str(name) for name in self.cells], _MOST_LISTED) or "none"

    def _used(self, kind: Field) -> set[str]:
        """Return the columns that the row is made of, or that are left out on purpose."""
        beside: tuple[Field, ...] = ("system", "context", "input", "history") if kind in ("prompt", "messages") else ()
        return {*(self._column(name).partition(".")[0] for name in (*_ALWAYS, *beside)), *self.ignored, *self._mapped()}

    def _mapped(self) -> Iterator[str]:
        return (self.columns[name] for name in FIELDS if name in self.columns)

    def _extra(self, kind: Field) -> dict[str, Any]:
        """Return the columns that are no field of the row; a system prompt is one only where it is used."""
        used = self._used(kind)
        return {key: value for key, value in self.cells.items() if key not in used and key != "response_start"}


def _is_padded(mask: object) -> bool:
    return isinstance(mask, list) and any(item == 0 for item in mask)


def _require_filled(text: str, where: str) -> None:
    if not text.strip():
        raise UserError(f"{where} is empty: fill it or leave the row out")
