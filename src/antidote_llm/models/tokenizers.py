"""Opens the tokenizer that goes with a model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antidote_llm.errors import UserError, first_line, setting, tokenizer_errors
from antidote_llm.io.safe_paths import require_enclosed
from antidote_llm.io.strict_json import loose_json
from antidote_llm.models.checkpoint_files import require_own_code

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Normalizers in use replace a space by a few characters, or decompose an accent.
_MOST_GROWTH, _SHORT_TEXT = 100.0, 100
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def open_tokenizer(folders: list[Path], asked: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Open the tokenizer that is asked for, or of the first folder that has one; None where none has.

    Raises:
        UserError: It cannot be opened, or something in its folder leads out of it.
    """
    from transformers import AutoTokenizer

    from antidote_llm.models.config import BROKEN_CHECKPOINT, needs_trust

    for place in [asked] if asked is not None else [folder for folder in folders if _has_tokenizer(folder)][:1]:
        if Path(place).is_dir():
            require_enclosed(Path(place))
            if trust_remote_code:
                require_own_code(Path(place))
        try:
            with tokenizer_errors(str(place), "be opened"):
                opened = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        except BROKEN_CHECKPOINT as error:
            reason = first_line(error).rstrip(". ")
            other = f"pass {setting('trust_remote_code')} if you trust it" if needs_trust(error) else "fetch it again"
            raise UserError(
                f"{place}: the tokenizer cannot be opened ({reason}): name another with {setting('tokenizer')}, "
                f"or {other}"
            ) from error
        if not isinstance(opened.model_max_length, (int, float)):
            raise UserError(
                f"{place}: tokenizer_config.json: model_max_length is not a number: name another with "
                f"{setting('tokenizer')}, or fetch it again"
            )
        _require_small_growth(str(place), opened)
        return opened
    return None


def stored_template(folder: Path) -> object:
    """Return the chat template that a folder holds, or of several the one named default; None where it holds none.

    A file that cannot be read gives the empty text, which no template is.
    """
    if (alone := folder / "chat_template.jinja").is_file():
        return alone.read_text(encoding="utf-8", errors="replace")
    if not (settings := folder / "tokenizer_config.json").is_file():
        return None
    found = loose_json(settings)
    template = found.get("chat_template") if isinstance(found, dict) else ""
    if not isinstance(template, list):
        return template
    named = (each for each in template if isinstance(each, dict))
    return next((each.get("template") for each in named if each.get("name") == "default"), "")


def _require_small_growth(place: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose replacements, one after the other, make a text many times longer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = None if backend is None else backend.normalizer
    # Its pickled state is JSON: that of the whole tokenizer may have 10 MB.
    growth = math.prod(map(_growth, _steps(normalizer and json.loads(normalizer.__getstate__()))))
    if growth > _MOST_GROWTH:
        raise UserError(
            f"{place}: tokenizer.json: its normalizer makes a text {growth:.0f} times longer: name another with "
            f"{setting('tokenizer')}, or fetch it again"
        )


def _steps(normalizer: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer, in order."""
    if isinstance(normalizer, dict):
        yield normalizer
        for each in normalizer.get("normalizers") or []:
            yield from _steps(each)


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many times longer one step can make a text of some length."""
    if step["type"] == "Replace":
        replaced = step["pattern"].get("String", "")
        return max(1.0, len(step["content"]) / max(1, len(replaced)))
    return 1.0 + len(step["prepend"]) / _SHORT_TEXT if step["type"] == "Prepend" else 1.0


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)
