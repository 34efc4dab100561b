"""A checkpoint on disk: where it is, which files hold its weights, and their hashes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from antidote_llm.errors import UserError, changed_meanwhile, setting
from antidote_llm.io.files import sha256_file
from antidote_llm.io.safe_paths import is_plain_name, require_enclosed
from antidote_llm.io.safetensors_files import TensorEntry, TensorFile, open_tensor_file
from antidote_llm.io.strict_json import is_utf8
from antidote_llm.models.checkpoint_files import FETCHED, FETCHED_CODE, PICKLE_SUFFIXES, require_own_code
from antidote_llm.models.other_formats import what_it_is, what_the_file_is

INDEX = "model.safetensors.index.json"
_STATES_OF_A_TRAINING = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
# What transformers would load instead of model.safetensors, silently.
_INSTEAD = re.compile(r"^shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$")
_GENERATION = "generation_config.json"
# Computed, not learned: older versions of transformers saved them.
_CONSTANT = re.compile(r"\.rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$")
_MASK_AXES = 4


@dataclass(frozen=True)
class FileStamp:
    """What changes when a file is written: its size, its time, and its place on the disk."""

    size_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Look at a file."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint and the file that holds it."""

    file_name: str
    file: TensorFile
    entry: TensorEntry


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors files with a configuration: a whole model or an adapter.

    Attributes:
        reference: What the user named: a folder or a Hub id.
        folder: Where it is on this disk.
        config: Its ``config.json`` or ``adapter_config.json``.
        weights: The files that hold its tensors, by name relative to ``folder``.
        stamps: What the configuration and the weight files looked like when it was opened, by name.
        peft_names: What peft calls the tensors of an adapter on its model, by key, once that is known.
        parsed_configs: What transformers makes of ``config``, by whether code of its own is trusted; filled and read by
            :func:`antidote_llm.models.config.parsed_config`.
    """

    reference: str
    folder: Path
    config: Mapping[str, object]
    weights: Mapping[str, TensorFile]
    stamps: Mapping[str, FileStamp]
    peft_names: Mapping[str, str] = field(default_factory=dict)
    parsed_configs: dict[bool, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every learned tensor by its key, and where it is."""
        return {
            key: StoredTensor(name, file, entry)
            for name, file in self.weights.items()
            for key, entry in file.entries.items()
            if not _is_constant(entry)
        }

    @cached_property
    def quantisation(self) -> str | None:
        """The method that packed its weights into few bits, as its configuration names it; None for none."""
        settings = self.config.get("quantization_config")
        if not settings:
            return None
        return str(settings.get("quant_method") or "unnamed") if isinstance(settings, Mapping) else "unnamed"

    @cached_property
    def sha256(self) -> dict[str, str]:
        """The hash of every weight file and of the configuration, by file name.

        Raises:
            UserError: A file has changed since the checkpoint was opened.
        """
        self.require_unchanged()
        found = {name: sha256_file(self.folder / name) for name in sorted(self.stamps)}
        self.require_unchanged()
        return found

    def require_unchanged(self) -> None:
        """Refuse a checkpoint whose files are no longer those that were opened.

        Raises:
            UserError: Names the file.
        """
        for name, stamp in self.stamps.items():
            path = self.folder / name
            if not path.is_file() or FileStamp.of(path) != stamp:
                raise changed_meanwhile(path)


def locate(reference: str, *, trust_remote_code: bool = False, with_code: bool = False) -> Path:
    """Return the local folder of a model or adapter, fetching it from the Hub where it is no folder here.

    Args:
        reference: A folder or a Hub id.
        trust_remote_code: Whether Python code that comes with it may run; it is fetched then.
        with_code: Whether Python code is fetched all the same, to be copied and not run.

    Raises:
        UserError: There is no such folder, and the Hub does not have it or cannot be reached; or something in it is
            outside of it, or its configuration names code that is elsewhere, where code is trusted.
    """
    folder = _located(reference, with_code or trust_remote_code)
    require_enclosed(folder)
    if trust_remote_code:
        require_own_code(folder)
    return folder


def _located(reference: str, with_code: bool) -> Path:
    if not reference.strip():
        raise UserError("a model without a name: name a folder or a Hub id")
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{reference} is a file: {what_the_file_is(path)}")
    if reference.startswith((".", "/", "~")) or reference.count("/") > 1:
        raise UserError(f"{reference}: no such folder: check the name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [*FETCHED, *([FETCHED_CODE] if with_code else [])]
        return Path(snapshot_download(reference, allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{reference}: no such folder here, and the Hub did not give it ({type(error).__name__}): "
            "check the name and the network"
        ) from error


def open_model_checkpoint(reference: str, folder: Path | None = None) -> Checkpoint:
    """Open a whole model's folder and check every weight file's header.

    Args:
        reference: A folder or Hub id.
        folder: Where it is, if it has been located already: a Hub id may mean another model a minute later.

    Raises:
        UserError: The configuration or a weight file is missing, truncated, a pickle, or outside the folder, or an
            adapter is in the same folder.
    """
    folder = folder or locate(reference)
    if (folder / "adapter_config.json").is_file():
        # transformers would load the adapter without being asked.
        raise UserError(
            f"{reference}: an adapter (adapter_config.json): name its base as MODEL, and this folder with "
            f"{setting('adapter')}; if it holds a whole model as well, keep the two in folders of their own"
        )
    if (folder / _GENERATION).is_file():
        # transformers would ignore a broken one, and the end tokens that it names would be lost.
        read_config(folder / _GENERATION)
    found = _open(reference, folder, "config.json", "model.safetensors")
    _require_loaded(found)
    return found


def _require_loaded(checkpoint: Checkpoint) -> None:
    """Refuse a folder of which transformers would load other weights than those that are looked at here."""
    named = checkpoint.config.get("transformers_weights")
    if named is not None and named not in (*checkpoint.weights, INDEX):
        raise UserError(
            f"{checkpoint.folder / 'config.json'}: transformers_weights names {str(named)!a}, which is not the "
            f"folder's {min(checkpoint.weights)}: take the entry out, or give that file this name"
        )
    if others := sorted(path.name for path in checkpoint.folder.iterdir() if _INSTEAD.match(path.name)):
        raise UserError(
            f"{checkpoint.reference}: transformers would load {others[0]} in place of {min(checkpoint.weights)}: keep "
            "the two in folders of their own"
        )


def open_adapter_checkpoint(reference: str, folder: Path | None = None) -> Checkpoint:
    """Open an adapter's folder and check its weight file's header: as :func:`open_model_checkpoint`."""
    folder = folder or locate(reference)
    return _open(reference, folder, "adapter_config.json", "adapter_model.safetensors", sharded=False)


def _open(reference: str, folder: Path, config_name: str, weights_name: str, *, sharded: bool = True) -> Checkpoint:
    if not is_utf8(str(folder)):
        raise UserError(f"{reference}: a name that is not UTF-8, at which libraries open no model: rename the folder")
    inside = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    if inside and not (folder / config_name).is_file():
        raise UserError(f"{reference} holds adapters in folders inside it: name one of them: {', '.join(inside)}")
    if not (folder / config_name).is_file():
        raise no_config(folder, config_name)
    config = read_config(folder / config_name)
    names = weight_file_names(folder, weights_name, sharded=sharded)
    stamps = {name: FileStamp.of(folder / name) for name in (config_name, *names)}
    weights = {name: open_tensor_file(folder / name) for name in names}
    if weights_name not in weights:
        _require_indexed(folder / f"{weights_name}.index.json", weights)
        _require_once(reference, weights)
    return Checkpoint(reference, folder, config, weights, stamps)


def same_tensors(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit, however they are split into files."""
    if first.weights.keys() == second.weights.keys() and all(
        first.sha256[name] == second.sha256[name] for name in first.weights
    ):
        return True
    places = [{key: file for file in side.weights.values() for key in file.entries} for side in (first, second)]
    if places[0].keys() != places[1].keys():
        return False
    return all(file.holds_the_same(key, places[1][key], key) for key, file in places[0].items())


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model: some trainers save the base's configuration with it."""
    whole = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    return (folder / "adapter_config.json").is_file() and not whole


def no_config(folder: Path, name: str) -> UserError:
    """Return the error of a folder without a configuration, with what the folder seems to be."""
    if name == "adapter_config.json" and (folder / "config.json").is_file():
        return UserError(
            f"{folder}: no {name}: not an adapter but a whole model (config.json): name it as MODEL, and the model "
            f"that it was tuned from with {setting('aligned')}"
        )
    if (found := what_it_is(folder)) is not None:
        return UserError(f"{folder}: no {name}: {found}")
    return UserError(f"{folder}: no {name}: not the folder of a Hugging Face checkpoint: name another")


def read_config(path: Path) -> Mapping[str, object]:
    """Read a JSON object.

    Raises:
        UserError: There is none.
    """
    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}: not the folder of a Hugging Face checkpoint: name another")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}): fetch the file again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object: fetch the file again")
    return config


def weight_file_names(folder: Path, name: str, *, sharded: bool = True) -> list[str]:
    """Return the names of the files that hold a checkpoint's weights: one file, or the shards of its index.

    Raises:
        UserError: There are none, or only pickles, or the index is broken or names files elsewhere.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return [name]
    if sharded and index.is_file():
        return _shards(index)
    pickles = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in PICKLE_SUFFIXES and not path.name.startswith(_STATES_OF_A_TRAINING)
    )
    of_transformers = [pickle for pickle in pickles if pickle.startswith(("pytorch_model", "adapter_model"))]
    if not of_transformers and (found := what_it_is(folder)) is not None:
        raise UserError(f"{folder}: no {name}: {found}")
    if pickles:
        way = "AutoModelForCausalLM.from_pretrained" if sharded else "PeftModel.from_pretrained on its base"
        raise UserError(
            f"{folder}: only pickled weights ({[*of_transformers, *pickles][0]}), which can run code when opened: "
            f"where you trust them, convert them to safetensors: {way}, then save_pretrained into another folder"
        )
    raise UserError(f"{folder}: no {name}: the weights are missing: fetch them")


def _require_indexed(index: Path, weights: Mapping[str, TensorFile]) -> None:
    weight_map = read_config(index)["weight_map"]
    assert isinstance(weight_map, dict)
    for key, shard in ((key, _in_folder(shard)) for key, shard in weight_map.items()):
        if key not in weights[shard].entries:
            raise UserError(f"{index}: '{key}' is not in {shard}, where it should be: fetch the folder again")


def _in_folder(shard: object) -> str:
    """Return a shard's name as an index has it, without a step into the folder that it is in already."""
    return str(shard).removeprefix("./")


def _require_once(reference: str, weights: Mapping[str, TensorFile]) -> None:
    places: dict[str, str] = {}
    for name, file in weights.items():
        for key in file.entries:
            if key in places:
                raise UserError(
                    f"{reference}: '{key}' is in {places[key]} and in {name}, and a repair of one would leave the "
                    "other: keep one of them"
                )
            places[key] = name


def _shards(index: Path) -> list[str]:
    weight_map = read_config(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map: fetch the file again")
    shards = sorted(set(map(_in_folder, weight_map.values())))
    for shard in shards:
        if not is_plain_name(shard):
            raise UserError(f"{index}: names a file outside its folder, {shard!a}: fetch the folder again")
        if not (index.parent / shard).is_file():
            raise UserError(f"{index.parent / shard}: shard is missing: fetch it again")
    return shards


def _is_constant(entry: TensorEntry) -> bool:
    """Whether a tensor is a rotary embedding's frequencies or a causal mask, not the bias of a layer."""
    is_bias = entry.key.endswith(".bias") and len(entry.shape) != _MASK_AXES
    return bool(_CONSTANT.search(entry.key)) and not is_bias
