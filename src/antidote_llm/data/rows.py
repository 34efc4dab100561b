"""From one row of a file to a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from antidote_llm.data.conversations import require_text, split_conversation
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.spec import FIELDS, KINDS, Field
from antidote_llm.errors import UserError


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        cells: Its values by column.
        origin: File and line.
        columns: Column by field, where they differ.
    """

    cells: Mapping[str, Any]
    origin: str
    columns: Mapping[str, str]

    def record(self, require: tuple[Field, ...]) -> Record:
        """Read the fields.

        Args:
            require: Fields that a row of prompt and response or of messages must have.

        Raises:
            UserError: A column is missing, a field is malformed, or a required one is missing or empty.
        """
        for name, column in self.columns.items():
            if column not in self.cells:
                raise UserError(f"{self.origin}: no column '{column}' for {name}: map one of {self._columns()}")
        # A kind of row that is asked for by name wins over columns that happen to be there.
        kinds = [name for name in KINDS if name in self.columns] or KINDS
        kind = next((name for name in kinds if self._value(name) is not None), None)
        if kind is None:
            if nothing := [name for name in kinds if self.columns.get(name, name) in self.cells]:
                raise UserError(f"{self._place(nothing[-1])} is null: fill it or leave the row out")
            raise UserError(
                f"{self.origin}: no field 'prompt' (nor 'messages', 'text' or 'input_ids'): "
                f"map a column, as in {self._example()}; there are {self._columns()}"
            )
        if kind == "input_ids":
            return self._of_token_ids()
        if kind == "text":
            _require_filled(text := self._text("text"), self._place("text"))
            return Record(text=text, extra=self._extra(), origin=self.origin)
        return self._exchange(kind, require)

    def _of_token_ids(self) -> Record:
        ids = self._value("input_ids")
        if not isinstance(ids, list) or not ids or not all(type(item) is int and item >= 0 for item in ids):
            raise UserError(f"{self.origin}: input_ids must be a list of one or more token ids: mend the row")
        start = 0 if self.cells.get("response_start") is None else self.cells["response_start"]
        if type(start) is not int or not 0 <= start <= len(ids):
            raise UserError(f"{self.origin}: response_start must be a number from 0 to {len(ids)}: mend the row")
        return Record(input_ids=tuple(ids), response_start=start, extra=self._extra(), origin=self.origin)

    def _exchange(self, kind: Field, require: tuple[Field, ...]) -> Record:
        history: tuple[Turn, ...] = ()
        response = None
        if kind == "messages":
            history, prompt, response = split_conversation(self._value("messages"), self._place("messages"))
        else:
            prompt = self._text("prompt")
        if response is None and self._value("response") is not None:
            response = self._text("response")
        if response is None and "response" in require:
            raise UserError(
                f"{self.origin}: no field 'response': map a column, as in file.csv:prompt=COLUMN,response=COLUMN, "
                f"or end the messages with an answer; there are {self._columns()}"
            )
        last = f"{self._place(kind)}: its last " if kind == "messages" else ""
        _require_filled(prompt, f"{last}prompt" if last else self._place("prompt"))
        if "response" in require:
            _require_filled(response or "", f"{last}answer" if last else self._place("response"))
        history = (*self._system(history), *history)
        return Record(prompt, response, history=history, extra=self._extra("system"), origin=self.origin)

    def _system(self, history: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turn that the row's column ``system`` adds, if any."""
        if self._value("system") is None:
            return ()
        text = self._text("system")
        if text.strip() and any(turn.role == "system" for turn in history):
            raise UserError(f"{self._place('system')}: the messages hold a system prompt already: leave one out")
        return (Turn("system", text),) if text.strip() else ()

    def _value(self, name: Field) -> Any:
        return self.cells.get(self.columns.get(name, name))

    def _text(self, name: Field) -> str:
        value = self._value(name)
        require_text(value, self._place(name))
        return str(value)

    def _place(self, name: Field) -> str:
        return f"{self.origin}: field '{self.columns.get(name, name)}'"

    def _example(self) -> str:
        conversation = next((name for name, cell in self.cells.items() if cell and isinstance(cell, list)), None)
        return f"chats.jsonl:messages={conversation}" if conversation else "file.csv:prompt=COLUMN"

    def _columns(self) -> str:
        return ", ".join(map(str, self.cells)) or "none"

    def _extra(self, *also_used: Field) -> dict[str, Any]:
        """Return the columns that are no field of the row; ``system`` is one only where it is used."""
        used = {*FIELDS} - {"system"} | {*also_used}
        names = {self.columns.get(name, name) for name in FIELDS if name in used}
        return {key: value for key, value in self.cells.items() if key not in names and key != "response_start"}


def _require_filled(text: str, where: str) -> None:
    if not text.strip():
        raise UserError(f"{where} is empty: fill it or leave the row out")
