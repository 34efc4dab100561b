"""A checkpoint's configuration as transformers reads it: checked against the files, compared, made into a model."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from antidote_llm.errors import UserError, first_line, setting
from antidote_llm.io.safetensors_files import FLOAT_BYTES, TensorEntry
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.other_formats import NOT_GATHERED


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the loading bars and reports of transformers off the terminal."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


OTHER_HEADS = ("Classification", "ForQuestionAnswering", "RewardModel", "MultipleChoice", "ForMaskedLM")
# Tensors of heads that no causal language model has: value heads of trainers, those of classifiers and of rewards.
NAMES_OF_HEADS = (
    "v_head|value_head|score|classifier|classification_head|pre_classifier|qa_outputs|reward_head|rm_head|"
    "regression_head"
)
_HEAD = re.compile(rf"^(pretrained_model\.)?({NAMES_OF_HEADS})\.")
# What transformers raises over a configuration or weights that it cannot make sense of.
BROKEN_CHECKPOINT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    re.error,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
_INITIALISATION = ("initializer_range", "initializer_factor")
_TRAINING = ("router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef", "output_router_logits")
_LABELS = ("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task")
_GENERATION = ("do_sample", "max_length", "temperature", "top_p", "repetition_penalty")
# How it is computed and what is handed out, not what comes out.
_EXECUTION = (
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("pretraining_tp", "gradient_checkpointing", "torchscript"),
)
_ORIGIN = ("architectures", "auto_map", "tokenizer_class", "dtype", "torch_dtype", "quantization_config")
# Compared by the tensors' shapes and names, or only the longest length of a text.
_ELSEWHERE = ("vocab_size", "tie_word_embeddings", "max_position_embeddings")
_NOT_COMPARED = {
    *_INITIALISATION,
    *_TRAINING,
    *_LABELS,
    *_GENERATION,
    *_EXECUTION,
    *_ORIGIN,
    *_ELSEWHERE,
}
# Numbers of modules in a configuration: building them takes time and memory, with or without values. Which layer of a
# tower is read, often counted from its end, is no such number.
_COUNTS = re.compile(
    r"(?!max_|first_|last_|\w*(feature|select|vision)_layer$)(\w+_)?(layers?|depths?|blocks?|experts|stages|groups|levels|codebooks|quantizers)|pretraining_tp"
)
# How many modules a small file may have, and one that has not been opened.
_FEW, _MOST_UNSEEN = 64, 4096
# How much larger than its files a model may be: buffers, and tensors that are missing or of another shape, which are
# named later.
_MOST_EXTRA_ENTRIES, _MOST_FACTOR = 100_000_000, 4
_LARGEST_INTEGER = 2**63 - 1
_NOT_COMPARED_ENDS = ("_token_id", "_version", "dropout", "_pdrop", "layerdrop")


def cannot_open(what: str, error: Exception) -> UserError:
    """Return the error of a model that transformers cannot open."""
    fix = "fetch it again, or update transformers"
    if needs_trust(error):
        fix = f"pass {setting('trust_remote_code')} if you trust it"
    elif isinstance(error, ImportError):
        fix = "install it, or take what needs it out of config.json"
    reason = first_line(error).rstrip(". ")
    return UserError(f"{what}: transformers cannot open it ({reason}): {fix}")


def needs_trust(error: Exception) -> bool:
    """Whether transformers would have to run code that comes with a checkpoint."""
    return "trust_remote_code" in str(error)


def parsed_config(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    """Return a checkpoint's configuration as transformers reads it: it is parsed once, and every caller gets a copy.

    Raises:
        UserError: It cannot, or it knows no causal language model of that kind.
    """
    known = checkpoint.parsed_configs
    if trust_remote_code not in known:
        known[trust_remote_code] = _parse_config(checkpoint, trust_remote_code)
    return copy.deepcopy(known[trust_remote_code])


def _parse_config(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    settings = checkpoint.config.get("quantization")
    if isinstance(settings, Mapping) and "group_size" in settings:
        raise UserError(
            f"{checkpoint.reference}: quantised weights of mlx, which transformers does not read: use the checkpoint "
            "before quantisation, or undo it (mlx_lm.convert --dequantize)"
        )
    _require_dtype(checkpoint)
    require_plausible(checkpoint.reference, checkpoint.config, [entry.shape for entry in _entries(checkpoint)])
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except BROKEN_CHECKPOINT as error:
        checkpoint.require_unchanged()
        raise cannot_open(checkpoint.reference, error) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        raise UserError(
            f"{checkpoint.reference}: transformers has no causal language model of the kind {config.model_type}: name "
            "one, such as its text model saved by itself"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{checkpoint.reference}: an encoder and a decoder ({config.model_type}): name a causal language model"
        )
    # With tied embeddings no tensor would be missing.
    if (kind := _saved_as(checkpoint)).endswith(OTHER_HEADS):
        raise UserError(f"{checkpoint.reference}: saved as {kind}: name a causal language model")
    _require_causal_tensors(checkpoint)
    return config


def _require_dtype(checkpoint: Checkpoint) -> None:
    setting = "torch_dtype" if checkpoint.config.get("dtype") is None else "dtype"
    named = checkpoint.config.get(setting)
    if named is None or isinstance(named, Mapping):
        return
    if not isinstance(named, str) or not isinstance(getattr(torch, named, None), torch.dtype):
        raise UserError(
            f"{checkpoint.reference}: config.json says {setting} {named!r}, which is no type of torch: write float32, "
            "bfloat16 or float16 there"
        )


def _require_causal_tensors(checkpoint: Checkpoint) -> None:
    """Refuse tensors of another head, and tensors that a trainer left empty."""
    entries = [entry for file in checkpoint.weights.values() for entry in file.entries.values()]
    if heads := sorted(entry.key for entry in entries if _HEAD.match(entry.key)):
        raise UserError(
            f"{checkpoint.reference}: it holds {heads[0]}, the head of a classifier, reward or value model, which a "
            "causal language model would leave out: name one without, such as the trainer's policy saved by itself"
        )
    if empty := sorted(entry.key for entry in entries if 0 in entry.shape and entry.key.endswith(("weight", "bias"))):
        raise UserError(f"{checkpoint.reference}: '{empty[0]}' is empty ({len(empty)} so in all): {NOT_GATHERED}")


def incomplete(checkpoint: Checkpoint, missing: Sequence[str]) -> UserError:
    """Return the error of tensors that a model has and the files lack."""
    number = f"{len(missing)} tensor{'s' if len(missing) > 1 else ''} in all"
    kind = _saved_as(checkpoint)
    stored = [key for file in checkpoint.weights.values() for key in file.entries]
    fix = "fetch it again"
    if factors := sorted(key for key in stored if "lora_" in key):
        return UserError(
            f"{checkpoint.reference}: a model with an adapter on it that is not merged ('{factors[0]}'): merge it "
            "(merge_and_unload in peft) before it is saved, or save the adapter by itself (save_pretrained in peft)"
        )
    if alike := [key for key in stored if f".{key}".endswith(f".{missing[0]}")]:
        return UserError(
            f"{checkpoint.reference}: '{alike[0]}' is misnamed, it must be '{missing[0]}': rename all its tensors so "
            "(safetensors.torch.load_file and save_file), or save the model itself and not what it was wrapped in"
        )
    if kind and not kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        fix = f"it was saved as {kind}: name a causal language model"
    return UserError(f"{checkpoint.reference}: the checkpoint lacks {missing[0]} ({number}): {fix}")


def _saved_as(checkpoint: Checkpoint) -> str:
    kinds = checkpoint.config.get("architectures")
    return str(kinds[0]) if isinstance(kinds, list) and kinds else ""


def require_plausible(
    reference: str, config: Mapping[str, object], shapes: Sequence[Sequence[int]] | None = None
) -> None:
    """Refuse a configuration that counts more layers or experts than there can be, before any is built.

    Args:
        reference: What the user named.
        config: A ``config.json``, as it is.
        shapes: Of all tensors of its files; None where they have not been opened. Every layer has a tensor of its own
            at least, and every expert one, or a slice of one.

    Raises:
        UserError: Names the setting and its value.
    """
    tensors = _MOST_UNSEEN if shapes is None else max(_FEW, len(shapes))
    longest = max([tensors, *(side for shape in shapes or () for side in shape)])
    for name, value in _numbers(config):
        if abs(value) > _LARGEST_INTEGER:
            raise UserError(
                f"{reference}: config.json says {name} is a number of {len(str(abs(value)))} digits: fetch it again"
            )
        most = longest if name.endswith("experts") else tensors
        if _COUNTS.fullmatch(name.rpartition(".")[2]) and not 0 <= value <= most:
            held = "no model has so many" if shapes is None else f"its weight files hold {len(shapes)} tensors"
            raise UserError(f"{reference}: config.json says {name} is {value}, and {held}: fetch it again")


def _numbers(config: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """Yield every whole number of a configuration, however deep, with its name; a list's have the list's."""
    waiting: list[tuple[str, object]] = [(str(key), value) for key, value in config.items()]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, int) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, Mapping):
            waiting += [(f"{name}.{key}", each) for key, each in value.items()]
        elif isinstance(value, list):
            waiting += [(name, each) for each in value]


def _entries(checkpoint: Checkpoint) -> Iterator[TensorEntry]:
    for file in checkpoint.weights.values():
        yield from file.entries.values()


def require_held(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Refuse a configuration of a model far larger than its files, before memory is taken for it.

    Where one is only somewhat larger, the tensor that does not fit is named when it is loaded.

    Args:
        model: The model of the configuration, without values.
        checkpoint: Its files; of integers, which may be packed, each bit counts.

    Raises:
        UserError: Says both sizes.
    """
    wanted = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    held = sum(
        math.prod(entry.shape) if entry.dtype in FLOAT_BYTES else 8 * (entry.end - entry.begin)
        for entry in _entries(checkpoint)
    )
    if wanted > _MOST_FACTOR * held + _MOST_EXTRA_ENTRIES:
        raise UserError(
            f"{checkpoint.reference}: config.json describes a model of {wanted} numbers, and its weight files hold "
            f"{held}: fetch it again"
        )


def empty_model(checkpoint: Checkpoint, trust_remote_code: bool, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the model of a checkpoint's own configuration, without values.

    Raises:
        UserError: transformers makes no model of it, or the files hold no model as large.
    """
    config = parsed_config(checkpoint, trust_remote_code)
    more = {} if dtype is None else {"dtype": dtype}
    try:
        with torch.device("meta"), quiet_transformers():
            made: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code, **more
            )
    except BROKEN_CHECKPOINT as error:
        raise cannot_open(checkpoint.reference, error) from error
    require_held(made, checkpoint)
    return made


def require_same_computation(tuned: Checkpoint, aligned: Checkpoint, trust_remote_code: bool) -> None:
    """Refuse an aligned model that computes something else from the same weights.

    Of a vision-language model and the text model alone, the text parts are compared. A setting that only one of the two
    has is unknown to their common class, and not compared. Inside a setting that both have, a missing part counts as
    None.

    Raises:
        UserError: Names the first setting that differs, and both values.
    """
    parsed = [parsed_config(side, trust_remote_code) for side in (tuned, aligned)]
    if type(parsed[0]) is not type(parsed[1]):
        parsed = [config.get_text_config() for config in parsed]
    configs = [config.to_dict() for config in parsed]
    ours, theirs = (dict(_settings(config)) for config in configs)
    common = configs[0].keys() & configs[1].keys()
    for key in sorted(ours.keys() | theirs.keys()):
        value, other = ours.get(key), theirs.get(key)
        if key.split(".")[0] in common and value != other:
            raise UserError(
                f"{aligned.reference}: {key} is {other}, in {tuned.reference} it is {value}: an aligned "
                "model that computes something else: name the one that the fine-tune started from"
            )


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if key in _NOT_COMPARED or key.startswith("_") or key.endswith(_NOT_COMPARED_ENDS):
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
