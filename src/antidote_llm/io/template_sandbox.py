"""Where chat templates run: the environment that transformers gives them, on a fixed day and without chance.

transformers lets no function be passed to a template, and its own date is today's. What a template can name here is
what it can name there; a test compares the two. It needs jinja2 alone, so that the process that it runs in starts in a
moment.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Templates that insert today's date would give other tokens tomorrow.
FIXED_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.timezone.utc)
_COMPILED = 64
_CODE = re.compile(r"%(.)", re.DOTALL)
# What Python writes for an object that has no text of its own, such as a filter's result that is not a list yet.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{4,}>")
_SURROGATE = re.compile("[\ud800-\udfff]")


def rendered(template: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template.

    Raises:
        TemplateError: It cannot be rendered, or not to the same text twice, or to what no tokenizer can read.
        Exception: Whatever else a template's expressions raise.
    """
    text = _compiled(template).render(variables)
    if _SURROGATE.search(text):
        raise TemplateError("it writes half a surrogate pair, which is no text")
    _require_repeatable(text, variables)
    return text


@lru_cache(maxsize=_COMPILED)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


def _require_repeatable(text: str, given: Mapping[str, Any]) -> None:
    """Refuse a rendering that holds an address in memory, which is another one in the next run."""
    found = _ADDRESS.search(text)
    if found is not None and found.group() not in json.dumps(given, ensure_ascii=False, default=str):
        raise TemplateError("it writes an object instead of a text")


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.filters["random"] = _random
    made.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, lipsum=_random, namespace=_Namespace, dict=_Dict()
    )
    return made


class _Generation(Extension):
    """The block that marks what the model is to say: its content is rendered as it is."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block's content, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """A namespace that takes no name with a leading underscore: those lead out of the sandbox."""

    def __init__(self, /, *values: Any, **more: Any) -> None:
        named = dict(*values, **more)
        for name in named:
            _require_plain(name)
        super().__init__(named)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


class _Dict:
    """The ``dict`` that a template can name: what it makes, and nothing of the class."""

    def __call__(self, *values: Any, **more: Any) -> dict[Any, Any]:
        return dict(*values, **more)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        """Return a dictionary of these keys."""
        return dict.fromkeys(*values)


def _require_plain(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a namespace takes no name with a leading underscore, such as {name}")


def _strftime_now(format: str) -> str:
    """Return the fixed date: without a time zone, as the date that transformers inserts."""
    seconds = str(int(FIXED_DATE.timestamp()))
    # The C library would count these seconds from the machine's own midnight.
    filled = _CODE.sub(lambda found: seconds if found.group(1) == "s" else found.group(), format)
    return FIXED_DATE.replace(tzinfo=None).strftime(filled)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _random(*_: Any, **__: Any) -> NoReturn:
    raise TemplateError("it draws at random, so that no two runs would see the same prompt")
