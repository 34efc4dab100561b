"""A model without its weights: what its configuration and tokenizer say, from a few kilobytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.errors import UserError
from antidote_llm.models.adapter import base_not_found, base_reference
from antidote_llm.models.checkpoint import (
    Checkpoint,
    is_adapter,
    locate,
    no_config,
    open_adapter_checkpoint,
    read_config,
)
from antidote_llm.models.config import BROKEN_CHECKPOINT, cannot_open, quiet_transformers, require_plausible
from antidote_llm.models.tokenizers import open_tokenizer

_CONFIG = "config.json"


@dataclass(frozen=True)
class Skeleton:
    """A checkpoint whose weights have not been opened.

    Attributes:
        reference: What the user named.
        config: Its configuration.
        tokenizer: Its tokenizer; None if there is none.
        trust_remote_code: Whether Python code that comes with it may run.
    """

    reference: str
    config: Any
    tokenizer: PreTrainedTokenizerBase | None
    trust_remote_code: bool = False

    def model(self) -> PreTrainedModel:
        """Return the model with weights that have shapes and no values, on the meta device.

        Raises:
            UserError: transformers makes no model of the configuration.
        """
        try:
            with torch.device("meta"), quiet_transformers():
                made: PreTrainedModel = AutoModelForCausalLM.from_config(
                    self.config, dtype=torch.float32, trust_remote_code=self.trust_remote_code
                )
        except BROKEN_CHECKPOINT as error:
            raise cannot_open(self.reference, error) from error
        return made

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type that its files hold, as far as its configuration says."""
        found: torch.dtype = getattr(torch, str(self.config.dtype or "float32").removeprefix("torch."))
        return found


def open_skeleton(reference: str, tokenizer: str | None = None, *, trust_remote_code: bool = False) -> Skeleton:
    """Open a model's configuration and tokenizer; of an adapter, its base's.

    Args:
        reference: A folder or Hub id; nothing but these few files is fetched.
        tokenizer: Where to take the tokenizer from, if not from there.
        trust_remote_code: Whether to run Python code that comes with the checkpoint.

    Raises:
        UserError: The configuration is not there, cannot be fetched, or is none.
    """
    folder = _folder(reference)
    require_plausible(reference, read_config(folder / _CONFIG))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except BROKEN_CHECKPOINT as error:
        raise cannot_open(reference, error) from error
    if tokenizer is None and not Path(reference).expanduser().is_dir():
        opened = _fetched_tokenizer(reference, trust_remote_code)
    else:
        opened = open_tokenizer([folder], tokenizer, trust_remote_code)
    return Skeleton(reference, config, opened, trust_remote_code)


def _folder(reference: str) -> Path:
    path = Path(reference).expanduser()
    if path.exists() or reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        folder = locate(reference)
        if is_adapter(folder):
            folder = _base_of(open_adapter_checkpoint(reference, folder))
        if not (folder / _CONFIG).is_file():
            raise no_config(folder, _CONFIG)
        return folder
    return _fetched(reference)


def _base_of(adapter: Checkpoint) -> Path:
    reference = base_reference(adapter)
    try:
        return folder if (folder := Path(reference)).is_dir() else _fetched(reference)
    except UserError as error:
        raise base_not_found(adapter, error) from error


def _fetched(reference: str) -> Path:
    try:
        return Path(hf_hub_download(reference, _CONFIG)).parent
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{reference}: no such folder here, and its {_CONFIG} could not be fetched from the Hub "
            f"({type(error).__name__}): check the name and the network, or name the folder of a model"
        ) from error


def _fetched_tokenizer(reference: str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    try:
        return open_tokenizer([], reference, trust_remote_code)
    except UserError:
        # A plan then counts characters, and reports that.
        return None
