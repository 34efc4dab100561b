"""Reads YAML of any origin: every problem is one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from antidote_llm.errors import first_line
from antidote_llm.io.strict_json import is_utf8

_MOST_BYTES = 1 << 18
_MOST_LEVELS = 50
_MOST_VALUES = 20_000
_LONGEST_NUMBER = 40
_OPENING = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_CLOSING = (yaml.SequenceEndEvent, yaml.MappingEndEvent)
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_KEYS = (f"{_TAG}str", f"{_TAG}merge")
_PLAIN = (*_KEYS, *_NUMBERS, *(f"{_TAG}{name}" for name in ("bool", "null", "timestamp", "seq", "map")))


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        OSError: It cannot be read.
        ValueError: As :func:`parse_yaml`.
    """
    with path.open("rb") as stream:
        return parse_yaml(stream.read(_MOST_BYTES + 1))


def parse_yaml(data: str | bytes) -> Any:
    """Return the value of a YAML text of plain values.

    Args:
        data: The text, or its bytes in UTF-8.

    Raises:
        ValueError: It is not YAML in UTF-8, is too long or too deep, grows through its anchors, gives a key twice, or
            has a key that is no text or a value that its tag cannot have. Says which in one line.
    """
    if len(data) > _MOST_BYTES:
        raise ValueError(f"longer than {_MOST_BYTES:,} bytes")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        _require_small(text)
        return yaml.load(text, Loader=_PlainLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ValueError(_message(error)) from error


def _message(error: yaml.YAMLError) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    message = " ".join(str(problem or first_line(error)).split())
    return f"{message} at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else message


def _require_small(text: str) -> None:
    """Refuse brackets too deep and values too many before anything walks through them."""
    depth = values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        values += isinstance(event, yaml.NodeEvent)
        _require_room(values, depth)


def _require_room(values: int, levels: int) -> None:
    if levels > _MOST_LEVELS:
        raise ValueError(f"more than {_MOST_LEVELS} levels deep")
    if values > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES:,} values, those of anchors counted as often as they are used")


class _PlainLoader(yaml.SafeLoader):
    """Refuses what the safe loader reads but is never meant, and what it fails on."""

    def get_single_node(self) -> Node | None:
        node: Node | None = super().get_single_node()
        if node is not None:
            _require_room(*_size(node, {}))
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            message = f"{node.value!r} is not a valid {node.tag.removeprefix(_TAG)}"
            raise ConstructorError(None, None, message, node.start_mark) from error


def _size(node: Node, known: dict[Node, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values a node stands for, anchors followed as often as they are used, and how deep they go."""
    if node in known:
        if known[node] == (0, 0):
            raise ValueError("an anchor that holds itself")
        return known[node]
    if node.tag not in _PLAIN:
        raise ConstructorError(None, None, f"the tag {node.tag.removeprefix(_TAG)}", node.start_mark)
    if isinstance(node, ScalarNode):
        _require_usable(node)
        return 1, 0
    if isinstance(node, MappingNode):
        _require_keys(node)
    known[node] = 0, 0
    parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
    sizes = [_size(part, known) for part in parts]
    known[node] = 1 + sum(values for values, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
    return known[node]


def _require_keys(node: MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or key.tag not in _KEYS:
            name = f"{key.value} as a key: put it in quotes" if isinstance(key, ScalarNode) else "a key that is no text"
            raise ConstructorError(None, None, name, key.start_mark)
        if key.value in seen:
            raise ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        seen.add(key.value)


def _require_usable(node: ScalarNode) -> None:
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        raise ConstructorError(None, None, "a number too long", node.start_mark)
    if "\0" in node.value or not is_utf8(node.value):
        raise ConstructorError(None, None, "a character that no name can hold", node.start_mark)
