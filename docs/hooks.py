"""Fills pages when the site is built: commands with their own help, functions with the fields of their specs."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

HELP = re.compile(r"^<!-- help:(.*?)-->$", re.MULTILINE)
OPTIONS = re.compile(r"^<!-- options: (\w+) -->$", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod):(?=<code)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace ``<!-- help: WORDS -->`` by that command's help, and ``<!-- options: SPEC -->`` by that spec's fields."""
    markdown = HELP.sub(lambda place: f"```text\n{help_of(place.group(1).split())}\n```", markdown)
    return OPTIONS.sub(lambda place: options_of(place.group(1)), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles of docstrings away, which are names of code here and no links."""
    return ROLE.sub("", html)


def help_of(words: list[str]) -> str:
    """Return what a command prints when it is asked for help.

    Raises:
        RuntimeError: There is no such command.
    """
    from antidote_llm.cli.main import run

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run([*words, "--help"])
    if code != 0:
        raise RuntimeError(f"antidote {' '.join(words)} --help ended with {code}")
    return printed.getvalue().strip()


def options_of(spec: str) -> str:
    """Return a table of a spec's fields, and of the settings that its methods or its training add."""
    rows = [f"| `{name}` | {default} | {words} |" for name, default, words in _fields(spec)]
    return "\n".join(["| argument | default | meaning |", "|---|---|---|", *rows])


def _fields(name: str) -> Iterator[tuple[str, str, str]]:
    from antidote_llm.training.settings import LoraSettings, TrainingSettings
    from antidote_llm.workflows import specs
    from antidote_llm.workflows.spec import LORA_NAMES, TRAINING_NAMES

    spec = getattr(specs, name)
    for field, info in spec.model_fields.items():
        if field == "settings":
            yield from _settings(spec.methods().values())
        elif field == "training":
            defaults = spec.training_defaults()
            for own in TRAINING_NAMES:
                value = f"`{getattr(defaults, own)}`"
                yield own, value, f"[training] {_words(TrainingSettings.model_fields[own])}"
            for own, shown in LORA_NAMES.items():
                value = f"`{getattr(defaults.lora, own)}`"
                yield shown, value, f"[LoRA] {_words(LoraSettings.model_fields[own])}"
        else:
            yield field, _default(info), _words(info)


def _settings(methods: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield every setting once, with the names of the methods or defenses that have it."""
    owners: dict[tuple[str, str, str], list[str]] = {}
    for method in methods:
        for name, field in method.settings.model_fields.items():
            owners.setdefault((name, _default(field), _words(field)), []).append(method.name)
    for (name, default, words), names in owners.items():
        yield name, default, f"[{', '.join(names)}] {words}"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value in (None, ()) else f"`{value}`"


def _words(field: Any) -> str:
    return re.sub(r"([|*<])", r"\\\1", field.description or "")
