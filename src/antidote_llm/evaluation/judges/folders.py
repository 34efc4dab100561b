"""The folder of a judge's model: found, checked and hashed at the start; its weights are loaded at the first answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoConfig, PreTrainedTokenizerBase

from antidote_llm.errors import UserError, first_line
from antidote_llm.io.files import sha256_file, sha256_json
from antidote_llm.models.checkpoint import locate, open_model_checkpoint, read_config
from antidote_llm.models.checkpoint_files import nested_files
from antidote_llm.models.config import BROKEN_CHECKPOINT, quiet_transformers, require_plausible
from antidote_llm.models.tokenizers import open_tokenizer

_PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")
_TEXT_FILES = (".json", ".model", ".txt", ".jinja", ".tiktoken")
_SHORT = 8


@dataclass(frozen=True)
class JudgeFolder:
    """A judge's model on disk.

    Attributes:
        judge: The judge's name, for messages.
        reference: A folder or a Hub id, as the user named it.
        folder: The folder.
        config: Its configuration, as transformers reads it.
        tokenizer: Its tokenizer.
        sha256: The hashes of its weights, configuration and tokenizer, by file name.
    """

    judge: str
    reference: str
    folder: Path
    config: Any
    tokenizer: PreTrainedTokenizerBase
    sha256: Mapping[str, str]

    @classmethod
    def open(cls, judge: str, reference: str) -> JudgeFolder:
        """Find a model and check its files, without loading the weights.

        Pickled weights are accepted where there are no safetensors, since PKU's classifier is published in this way:
        torch loads them without running code.

        Raises:
            UserError: It is not there, or a file is missing, truncated or of another kind.
        """
        try:
            folder = locate(reference)
            weights = _weights(reference, folder)
            tokenizer = open_tokenizer([folder], None, False)
            require_plausible(reference, read_config(folder / "config.json"))
        except UserError as error:
            raise UserError(f"judge '{judge}': {error.text}") from error
        if tokenizer is None:
            raise UserError(f"judge '{judge}': {reference} has no tokenizer: fetch it again")
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except BROKEN_CHECKPOINT as error:
            reason = first_line(error).rstrip(". ")
            raise UserError(
                f"judge '{judge}': {reference}: transformers cannot open it ({reason}): name another model, or update "
                "transformers"
            ) from error
        texts = [path.name for path in folder.iterdir() if path.suffix in _TEXT_FILES and path.is_file()]
        sha256 = {**{name: sha256_file(folder / name) for name in [*texts, *nested_files(folder)]}, **weights}
        return cls(judge, reference, folder, config, tokenizer, dict(sorted(sha256.items())))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the model's readings depend on, as JSON values."""
        return {
            "files": dict(self.sha256),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": _device().type,
        }

    @property
    def named(self) -> str:
        """The judge's name with the first letters of its model's hash: two models are two judges."""
        return f"{self.judge}@{_short(self.sha256)}"

    def load(self, kind: Any) -> Any:
        """Load the weights into a class of transformers, on a GPU if there is one.

        Raises:
            UserError: They do not fit the class.
        """
        try:
            with quiet_transformers():
                model, info = kind.from_pretrained(
                    self.folder, dtype="auto", output_loading_info=True, trust_remote_code=False
                )
        except UnpicklingError as error:
            raise UserError(
                f"judge '{self.judge}': {self.reference}: its pickled weights hold more than weights: "
                "name a checkpoint of safetensors"
            ) from error
        except BROKEN_CHECKPOINT as error:
            raise UserError(f"judge '{self.judge}': {self.reference}: {first_line(error)}") from error
        if missing := sorted(map(str, info["missing_keys"])):
            raise UserError(
                f"judge '{self.judge}': {self.reference} lacks {missing[0]} ({len(missing)} tensors in all): "
                "name a model that this judge supports"
            )
        return model.to(_device()).eval().requires_grad_(False)


def require_architecture(opened: JudgeFolder, ending: str, what: str) -> None:
    """Check the kind of a model by the ending of its architecture's name.

    Raises:
        UserError: It is of another kind.
    """
    names = list(getattr(opened.config, "architectures", None) or ["nothing"])
    if not any(str(name).endswith(ending) for name in names):
        raise UserError(
            f"judge '{opened.judge}': {opened.reference} is {names[0]}, not {what} (…{ending}): name another model"
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _short(sha256: Mapping[str, str]) -> str:
    return sha256_json(dict(sha256))[:_SHORT]


def _weights(reference: str, folder: Path) -> Mapping[str, str]:
    """Return the hashes of a model's weight files, downloaded as pickles where the Hub has no safetensors."""
    if any(folder.glob("*.safetensors")):
        return open_model_checkpoint(reference, folder).sha256
    if not Path(reference).expanduser().is_dir():
        try:
            folder = Path(snapshot_download(reference, allow_patterns=["pytorch_model*"]))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise UserError(
                f"{reference}: the Hub did not give its weights ({type(error).__name__}): check the network"
            ) from error
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        raise UserError(f"{reference}: no weights (*.safetensors or pytorch_model*.bin): fetch it again")
    for path in pickles:
        if not is_zipfile(path):
            raise UserError(f"{path}: truncated, or not a file of weights: fetch it again")
    return {path.name: sha256_file(path) for path in pickles}
