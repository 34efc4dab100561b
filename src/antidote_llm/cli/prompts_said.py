"""Says which template prompts go through, and whose it is where the folders that were opened have several."""

from __future__ import annotations

from collections.abc import Iterable

from antidote_llm.cli.terminal import Terminal
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.tokenizers import stored_template


def say_prompts(terminal: Terminal, opened: LoadedModel, renderer: Renderer, records: Iterable[Record]) -> str:
    """Say how prompts become what the model reads, and return what was said; nothing where there is no prompt."""
    if opened.tokenizer is None or all(record.prompt is None for record in records):
        return ""
    said = renderer.described + (_others(opened) if renderer.chosen_by_tokenizer else "")
    terminal.say(said)
    return said


def _others(opened: LoadedModel) -> str:
    """Name the tokenizer, where a folder that was opened and is not the tokenizer's has another chat template."""
    taken = opened.tokenizer.name_or_path if opened.tokenizer is not None else ""
    own = [each.reference for each in opened.checkpoints if str(each.folder) == taken]
    others = [
        each.reference
        for each in opened.checkpoints
        if str(each.folder) != taken and stored_template(each.folder) not in (None, _used(opened))
    ]
    if not others:
        return ""
    have = "has a chat template of its own" if len(others) == 1 else "have chat templates of their own"
    return f"; the tokenizer is that of {(own or [taken])[0]}, and {' and '.join(others)} {have}: --tokenizer takes it"


def _used(opened: LoadedModel) -> object:
    template = opened.tokenizer.chat_template if opened.tokenizer is not None else None
    return template.get("default") if isinstance(template, dict) else template
