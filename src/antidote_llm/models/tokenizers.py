"""Opens the tokenizer that goes with a model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from antidote_llm.artifacts.enclosure import require_enclosed
from antidote_llm.errors import UserError, first_line
from antidote_llm.models.configuration import BROKEN_CHECKPOINT, needs_trust
from antidote_llm.models.remote_code import require_own_code

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def open_tokenizer(folders: list[Path], asked: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Open the tokenizer that is asked for, or of the first folder that has one; None where none has.

    Raises:
        UserError: It cannot be opened, or something in its folder leads out of it.
    """
    for place in [asked] if asked is not None else [folder for folder in folders if _has_tokenizer(folder)][:1]:
        if Path(place).is_dir():
            require_enclosed(Path(place))
            if trust_remote_code:
                require_own_code(Path(place))
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        except BROKEN_CHECKPOINT as error:
            reason = first_line(error).rstrip(". ")
            other = "pass --trust-remote-code if you trust it" if needs_trust(error) else "fetch it again"
            raise UserError(
                f"{place}: the tokenizer cannot be opened ({reason}): name another with --tokenizer, or {other}"
            ) from error
    return None


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)
