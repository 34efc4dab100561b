"""Reads a record from one row of a file."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from antidote_llm.data.columns import (
    ANSWERS,
    COMPLETION,
    FORMATS,
    Layout,
    is_filled,
    is_nan,
    is_refused,
    layout_of,
    may_count,
    require_unfilled,
    unread_columns,
    unread_in_messages,
)
from antidote_llm.data.conversations import earlier_turns, require_text, split_conversation, text_of
from antidote_llm.data.data_spec import Field, quoted
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.task_prompts import contextual_prompt, instruction_prompt
from antidote_llm.errors import UserError, listed

_MOST_LISTED = 20
# The label of a token that does not count in the loss.
_IGNORED_LABEL = -100
# Names that trainers give a list of 0 and 1: whether each token counts in the loss.
_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        cells: Its values by column.
        origin: File and line.
        columns: Column by field, where the names differ.
        ignored: Columns and fields of messages that are left out on purpose.
    """

    cells: Mapping[str, Any]
    origin: str
    columns: Mapping[Field, str]
    ignored: tuple[str, ...] = ()

    def record(self, require: tuple[Field, ...]) -> Record:
        """Read the fields.

        Args:
            require: Fields that a row of prompt and response or of messages must have.

        Raises:
            UserError: A column is missing, a field is malformed, a required one is missing or empty, or a column
                without which the row means something else cannot be read.
        """
        for name, column in self.columns.items():
            if column not in self.cells and self._nested(column) is None:
                raise UserError(f"{self.origin}: no column '{column}' for {name}: map one of {self._columns()}")
        layout = self._layout()
        kind = next((name for name in layout.kinds if self._value(layout, name) is not None), None)
        if kind is None:
            raise self._of_no_kind(layout)
        if kind in ("prompt", "messages"):
            require_unfilled(self.cells, layout.refused_with_a_prompt, self.origin)
            neighbours = self._neighbours()
            require_unfilled(neighbours, [path for path in neighbours if is_refused(_last(path))], self.origin)
            return self._exchange(layout, kind, require)
        require_unfilled(self.cells, layout.refused_with_a_text, self.origin)
        if kind == "input_ids":
            return self._of_token_ids(layout)
        _require_filled(text := self._text(layout, "text"), self._place(layout, "text"))
        return Record(text=text, extra=self._extra(layout.extra_of_a_text), origin=self.origin)

    def unread(self, record: Record) -> Iterator[str]:
        """Yield the columns that may be part of the prompt or its answer and are not read, for a warning."""
        layout = self._layout()
        if record.prompt is None:
            return
        neighbours = {path: cell for path, cell in self._neighbours().items() if may_count(_last(path))}
        if neighbours or any(is_filled(self.cells[name]) for name in layout.named):
            read = f"{text_of(record.conversation())}\n{record.response or ''}"
            yield from unread_columns(self.cells, layout.named, read)
            yield from unread_columns(neighbours, neighbours, read)
        if self._is_other_answer(layout, record):
            yield layout.columns["response"][0]
        # In KTO's rows, the label says whether the completion is a desired one.
        if COMPLETION in layout.columns["response"] and isinstance(self.cells.get("label"), bool):
            yield from () if "label" in self.ignored else ("label",)

    def unread_in_messages(self) -> Iterator[str]:
        """Yield the fields of messages that may matter and are not read, for a warning."""
        layout = self._layout()
        for name in ("messages", "prompt", "response"):
            if isinstance(messages := self._value(layout, name), list):
                yield from unread_in_messages(messages, self.ignored)

    def names(self) -> set[str]:
        """Return the names of the columns and of the message fields in them."""
        lists = [cell for cell in self.cells.values() if isinstance(cell, list)]
        return {
            *self.cells,
            *self._neighbours(()),
            *(name for cell in lists for item in cell if isinstance(item, Mapping) for name in item),
        }

    def _layout(self) -> Layout:
        return layout_of(tuple(self.cells), tuple(self.columns.items()), self.ignored)

    def _of_no_kind(self, layout: Layout) -> UserError:
        if nothing := [name for name in layout.kinds if layout.columns[name]]:
            return UserError(f"{self._place(layout, nothing[-1])} is null: fill it or leave the row out")
        return UserError(
            f"{self.origin}: no field 'prompt' (nor 'messages', 'text' or 'input_ids'): "
            f"map a column, as in {self._example()}; there are {self._columns()}"
        )

    def _is_other_answer(self, layout: Layout, record: Record) -> bool:
        """Whether messages end in another answer than the one in the answer column."""
        answer = self._value(layout, "response")
        return isinstance(answer, str) and is_filled(answer) and answer != record.response

    def _of_token_ids(self, layout: Layout) -> Record:
        ids = self._value(layout, "input_ids")
        if not isinstance(ids, list) or not ids or not all(type(item) is int and item >= 0 for item in ids):
            raise UserError(f"{self.origin}: input_ids must be a list of one or more token ids: correct the row")
        start = self._labelled_start(ids) if self.cells.get("response_start") is None else self.cells["response_start"]
        if type(start) is not int or not 0 <= start <= len(ids):
            raise UserError(f"{self.origin}: response_start must be a number from 0 to {len(ids)}: correct the row")
        if (packed := self._packed()) is not None:
            raise UserError(
                f"{self.origin}: {packed} says that several texts are packed into one row: write each as a row of its "
                f"own, or pass ignore={packed}"
            )
        if _is_padded(self.cells.get("attention_mask")) and "attention_mask" not in self.ignored:
            raise UserError(f"{self.origin}: attention_mask leaves tokens out: write the ids without padding")
        extra = self._extra(layout.extra_of_a_text)
        return Record(input_ids=tuple(ids), response_start=start, extra=extra, origin=self.origin)

    def _labelled_start(self, ids: list[int]) -> int:
        """Return the response's start from labels, which are -100 before it and equal to the ids from there on."""
        labels = self.cells.get("labels")
        if labels is None or "labels" in self.ignored:
            return self._masked_start(ids)
        sound = isinstance(labels, list) and len(labels) == len(ids)
        start = next((place for place, label in enumerate(labels) if label != _IGNORED_LABEL), len(ids)) if sound else 0
        if not sound or labels[start:] != ids[start:]:
            raise UserError(
                f"{self.origin}: labels are not {_IGNORED_LABEL} up to the response and its token ids from there: give "
                "response_start, or pass ignore=labels to count every token"
            )
        return start

    def _masked_start(self, ids: list[int]) -> int:
        """Return the response's start from a loss mask, which is 0 before it and 1 from there on."""
        name = next((name for name in _MASKS if self.cells.get(name) is not None and name not in self.ignored), None)
        if name is None:
            return 0
        mask = self.cells[name]
        sound = isinstance(mask, list) and len(mask) == len(ids) and all(value in (0, 1) for value in mask)
        if not sound or sorted(mask) != mask:
            raise UserError(
                f"{self.origin}: {name} is not 0 up to the response and 1 from there: give response_start, or pass "
                f"ignore={name} to count every token"
            )
        response_tokens: int = sum(mask)
        return len(ids) - response_tokens

    def _packed(self) -> str | None:
        """Return the column that shows that several texts are packed into a row of token ids."""
        positions, lengths = self.cells.get("position_ids"), self.cells.get("seq_lengths")
        if isinstance(lengths, list) and len(lengths) > 1 and "seq_lengths" not in self.ignored:
            return "seq_lengths"
        restarts = isinstance(positions, list) and 0 in positions[1:]
        return "position_ids" if restarts and "position_ids" not in self.ignored else None

    def _exchange(self, layout: Layout, kind: Field, require: tuple[Field, ...]) -> Record:
        history, prompt, response = self._conversation(layout, kind)
        if response is None and self._value(layout, "response") is not None:
            response = self._text(layout, "response")
        if response is None and "response" in require:
            raise UserError(
                f"{self.origin}: no field 'response': map a column, as in {self._answer_example()}, "
                f"or end the messages with an answer; there are {self._columns()}"
            )
        place = self._place(layout, kind)
        last = f"{place}: its last " if self._is_conversation(layout, kind) else ""
        _require_filled(prompt, f"{last}prompt" if last else place)
        if "response" in require:
            _require_filled(response or "", f"{last}answer" if last else self._place(layout, "response"))
        history = (*self._system(layout, history), *history)
        return Record(
            prompt, response, history=history, extra=self._extra(layout.extra_of_a_prompt), origin=self.origin
        )

    def _conversation(self, layout: Layout, kind: Field) -> tuple[tuple[Turn, ...], str, str | None]:
        """Return the earlier turns, the prompt, and the response where messages hold it."""
        answer, place = self._value(layout, "response"), self._place(layout, kind)
        if isinstance(answer, Mapping):
            # LLaMA-Factory's pairs hold one message each.
            answer = [answer]
        if self._is_conversation(layout, kind):
            for name in ("input", "context", "history"):
                if name in self.columns and is_filled(self._value(layout, name)):
                    raise UserError(
                        f"{place} is a whole conversation: leave {name}={self.columns[name]} out of the mapping"
                    )
            return split_conversation(self._value(layout, kind), place, answer, self.ignored)
        prompt, history = self._prompt(layout), self._history(layout)
        if not isinstance(answer, list):
            return history, prompt, None
        asked = [{"role": "user", "content": prompt}]
        before, last, response = split_conversation(asked, self._place(layout, "response"), answer, self.ignored)
        return (*history, *before), last, response

    def _is_conversation(self, layout: Layout, kind: Field) -> bool:
        return kind == "messages" or isinstance(self._value(layout, kind), list)

    def _prompt(self, layout: Layout) -> str:
        """Return the prompt with its input and context, as its format combines them."""
        prompt = self._text(layout, "prompt")
        if is_filled(self._value(layout, "input")):
            prompt = instruction_prompt(prompt, self._text(layout, "input"))
        if is_filled(self._value(layout, "context")):
            prompt = contextual_prompt(self._text(layout, "context"), prompt)
        return prompt

    def _history(self, layout: Layout) -> tuple[Turn, ...]:
        pairs = self._value(layout, "history")
        return earlier_turns(pairs, self._place(layout, "history"), self.ignored) if is_filled(pairs) else ()

    def _system(self, layout: Layout, history: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turn that the row's column ``system`` adds, if any."""
        if self._value(layout, "system") is None:
            return ()
        text = self._text(layout, "system")
        if text.strip() and any(turn.role == "system" for turn in history):
            raise UserError(
                f"{self._place(layout, 'system')}: the messages hold a system prompt already: leave one out"
            )
        return (Turn("system", text),) if text.strip() else ()

    def _value(self, layout: Layout, name: Field) -> Any:
        """Return the first filled value of a field's columns; null and NaN count as missing."""
        found = None
        for column in layout.columns[name]:
            value = self.cells[column] if column in self.cells else self._nested(column)
            if value is not None and not is_nan(value):
                if is_filled(value):
                    return value
                found = value if found is None else found
        return found

    def _neighbours(self, left_out: Container[str] | None = None) -> dict[str, Any]:
        """Return the values next to a nested one that a dotted path maps, by their own dotted paths.

        Args:
            left_out: Paths that do not count; the ignored ones where not given.
        """
        left_out = self.ignored if left_out is None else left_out
        paths = [column for column in self.columns.values() if "." in column and column not in self.cells]
        found: dict[str, Any] = {}
        for parent in dict.fromkeys(path.rpartition(".")[0] for path in paths):
            inside = self._nested(parent) if "." in parent else self.cells.get(parent)
            if isinstance(inside, Mapping):
                found.update({f"{parent}.{name}": cell for name, cell in inside.items()})
        mapped = [f"{path}." for path in self.columns.values()]
        return {
            path: cell
            for path, cell in found.items()
            if path not in left_out and not any(each.startswith(f"{path}.") for each in mapped)
        }

    def _nested(self, column: str) -> Any:
        """Return the value at a dotted path inside a column; None where there is none."""
        if "." not in column:
            return None
        value: Any = self.cells
        for name in column.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def _text(self, layout: Layout, name: Field) -> str:
        value = self._value(layout, name)
        require_text(value, self._place(layout, name))
        return str(value)

    def _place(self, layout: Layout, name: Field) -> str:
        return f"{self.origin}: field '{next(iter(layout.columns[name]), name)}'"

    def _example(self) -> str:
        known = next((name for name in FORMATS if name in self.cells), None)
        if known is not None:
            answer = next((f",response={name}" for name in ANSWERS if name in self.cells), "")
            return f"file.csv:prompt={known}{answer}"
        conversation = next((name for name, cell in self.cells.items() if cell and isinstance(cell, list)), None)
        return f"chats.jsonl:messages={quoted(conversation)}" if conversation else "file.csv:prompt=COLUMN"

    def _answer_example(self) -> str:
        found = next((name for name in ANSWERS if name in self.cells), "COLUMN")
        prompt = quoted(self.columns.get("prompt", "prompt" if "prompt" in self.cells else "COLUMN"))
        return f"file.csv:prompt={prompt},response={found}"

    def _columns(self) -> str:
        return listed([str(name) for name in self.cells], _MOST_LISTED) or "none"

    def _extra(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: self.cells[name] for name in names}


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _is_padded(mask: object) -> bool:
    return isinstance(mask, list) and any(item == 0 for item in mask)


def _require_filled(text: str, where: str) -> None:
    if not text.strip():
        raise UserError(f"{where} is empty: fill it or leave the row out")
