"""Opens the tokenizer that goes with a model."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from antidote_llm.errors import UserError, first_line
from antidote_llm.models.configuration import BROKEN_CHECKPOINT, needs_trust

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def open_tokenizer(folders: list[Path], asked: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Open the tokenizer that is asked for, or of the first folder that has one; None where none has.

    Raises:
        UserError: It cannot be opened.
    """
    for place in [asked] if asked is not None else [folder for folder in folders if _has_tokenizer(folder)][:1]:
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        except BROKEN_CHECKPOINT as error:
            reason = first_line(error).rstrip(". ")
            other = "pass --trust-remote-code if you trust it" if needs_trust(error) else "fetch it again"
            raise UserError(
                f"{place}: the tokenizer cannot be opened ({reason}): name another with --tokenizer, or {other}"
            ) from error
    return None


def stored_template(folder: Path) -> object:
    """Return the chat template that a folder holds, or of several the one named default; None where it holds none.

    A file that cannot be read gives the empty text, which no template is.
    """
    if (alone := folder / "chat_template.jinja").is_file():
        return alone.read_text(encoding="utf-8", errors="replace")
    if not (settings := folder / "tokenizer_config.json").is_file():
        return None
    try:
        found = json.loads(settings.read_bytes())
    except (ValueError, RecursionError):
        return ""
    template = found.get("chat_template") if isinstance(found, dict) else ""
    if isinstance(template, list):
        return next((each.get("template") for each in template if each.get("name") == "default"), "")
    return template


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)
