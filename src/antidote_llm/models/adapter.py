"""LoRA adapters: which kinds are understood, and their sites."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import peft
import torch
from peft import LoraConfig, PeftModel
from torch import nn

from antidote_llm.errors import UserError, setting
from antidote_llm.io.safetensors_files import FLOAT_BYTES, TensorEntry
from antidote_llm.models.checkpoint import Checkpoint, open_model_checkpoint, same_tensors
from antidote_llm.models.config import OTHER_HEADS
from antidote_llm.models.dora import is_dora, magnitude_of
from antidote_llm.models.hub_private import is_hub_id
from antidote_llm.models.other_formats import NOT_GATHERED
from antidote_llm.models.peft_names import PREFIX, unread
from antidote_llm.models.sites import Role, Site
from antidote_llm.models.transformers_private import tied_names

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_NAME = "default"
_FACTOR = re.compile(
    rf"^(?:{re.escape(PREFIX)})?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<letter>[AB])(\.weight)?$"
)
# Names of folders in which trainers keep models: they are no owners on the Hub.
_FOLDERS = """
base base_model base_models base-model base-models model models my_model my_models llm llms hf_models
huggingface_models pretrained pretrained_models saved saved_models save saves checkpoint checkpoints ckpt ckpts
weights final merged finetuned fine-tuned fine_tuned train trained training out output outputs result results export
exports exp experiment experiments run runs log logs work workdir workspace scratch tmp cache data
drive content home local mnt opt root
"""
_CHECKPOINT = re.compile(r"^(checkpoint|ckpt|step|epoch|global_step)[-_]?\d+$", re.IGNORECASE)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Settings of LoraConfig with which the forward pass stays the base's plus B A x times the scaling. Others change it,
# or have not been examined: an adapter that has one set is refused by that name.
_WHAT_IT_IS = ("peft_type", "task_type", "auto_mapping", "peft_version", "revision", "base_model_name_or_path")
_WHERE = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias"),
)
_HOW_MUCH = ("r", "lora_alpha", "use_rslora")
_TRAINING = ("inference_mode", "lora_dropout", "runtime_config")
# Ties copies of embeddings and head, which are no factors; see _require_untied.
_TIES = ("ensure_weight_tying",)
# How A and B were initialised, which does not matter afterwards.
_INITIALISATION = ("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config")
# Sizes of what is not switched on.
_IDLE = ("megatron_core", "qalora_group_size")
_UNDERSTOOD = {*_WHAT_IT_IS, *_WHERE, *_HOW_MUCH, *_TRAINING, *_INITIALISATION, *_IDLE, *_TIES, "use_dora"}
# Initialisations that also change the base's own weights, so that the base is not the aligned model.
_INITS_THAT_MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
MERGE = (
    "merge it into its base, not quantised (merge_and_unload in peft), and repair the result with "
    f"{setting('aligned')} BASE"
)
# Kinds other than LoRA that can be merged into weights with the same outputs.
_MERGEABLE = ("ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA", "LN_TUNING", "TRAINABLE_TOKENS")
# Settings that peft cannot merge, or cannot always.
_NOT_MERGEABLE = {
    "arrow_config": "peft cannot merge it, because it chooses among adapters token by token: name one of those",
    "megatron_config": "save it without Megatron's parallel layers",
    "alora_invocation_tokens": "peft cannot merge it: train it without that setting",
    "lora_bias": f"where its modules of the base have biases, {MERGE}; otherwise train it without that setting",
    "layer_replication": "peft cannot save it merged: train it without that setting",
}
# The models of adapters of other tasks.
_OTHER_TASKS = {
    "SEQ_CLS": "a classifier or reward model",
    "TOKEN_CLS": "a token classifier",
    "QUESTION_ANS": "a model that marks answers in a text",
    "FEATURE_EXTRACTION": "a model of embeddings",
    "SEQ_2_SEQ_LM": "an encoder-decoder model",
}


def require_plain_lora(adapter: Checkpoint) -> None:
    """Refuse adapters of other models than causal language models, and those whose A and B are not the whole update.

    Raises:
        UserError: Names the task, the kind or the variant.
    """
    _require_causal(adapter)
    kind = str(adapter.config.get("peft_type") or "").upper()
    if kind != "LORA":
        fix = "it cannot be merged either: name a LoRA adapter" if kind else "set peft_type in adapter_config.json"
        raise UserError(
            f"{adapter.reference}: a {kind or 'nameless'} adapter cannot be repaired, only LoRA: "
            f"{MERGE if kind in _MERGEABLE else fix}"
        )
    for name, value in adapter.config.items():
        if value and name not in _UNDERSTOOD:
            _refuse_setting(adapter, name)
    start = str(adapter.config.get("init_lora_weights")).lower()
    if start.startswith(_INITS_THAT_MOVE_THE_BASE):
        raise UserError(
            f"{adapter.reference}: LoRA initialised with '{start}' cannot be repaired, because it changes "
            f"the base's weights "
            "too: convert it to a plain LoRA when saving it (path_initial_model_for_weight_conversion in peft)"
        )
    found = factors(adapter)
    if not found and not any("lora_" in key for key in _keys(adapter)):
        raise UserError(
            f"{adapter.reference}: {ADAPTER_FILE} holds no lora_A or lora_B matrix: name the folder of a LoRA "
            "adapter, or save it again"
        )
    _require_untied(adapter, found.values())


def _require_causal(adapter: Checkpoint) -> None:
    task = adapter.config.get("task_type")
    mapping = adapter.config.get("auto_mapping")
    made_for = str(mapping.get("base_model_class") or "") if isinstance(mapping, Mapping) else ""
    if task in (None, "", "CAUSAL_LM") and not made_for.endswith(OTHER_HEADS):
        return
    what = made_for if task in (None, "", "CAUSAL_LM") else _OTHER_TASKS.get(str(task), f"the task {task}")
    place = "auto_mapping" if what == made_for else f"task_type {task}"
    raise UserError(
        f"{adapter.reference}: the adapter of {what} ({place} in adapter_config.json): name the adapter of a causal "
        "language model (task_type CAUSAL_LM)"
    )


def _require_untied(adapter: Checkpoint, found: Iterable[Factor]) -> None:
    """Refuse factors of embeddings where more than their product is added to the embedding alone."""
    embeddings = [factor for factor in found if factor.of_embedding]
    if embeddings and is_dora(adapter):
        raise UserError(
            f"{adapter.reference}: DoRA on embeddings ({embeddings[0].module}) cannot be repaired yet: train it with "
            "LoRA, or without them"
        )
    if embeddings and adapter.config.get("ensure_weight_tying"):
        raise UserError(
            f"{adapter.reference}: LoRA with 'ensure_weight_tying' on embeddings ({embeddings[0].module}) cannot be "
            "repaired yet: train it without them, or without that setting"
        )


def _refuse_setting(adapter: Checkpoint, name: str) -> NoReturn:
    if name == "target_parameters":
        raise UserError(
            f"{adapter.reference}: LoRA on experts ('{name}') cannot be repaired yet, because its A and B hold "
            f"those of all experts interleaved: {MERGE}"
        )
    if name in {field.name for field in dataclasses.fields(LoraConfig)}:
        raise UserError(
            f"{adapter.reference}: LoRA with '{name}' cannot be repaired yet, only plain LoRA, rank-stabilised LoRA "
            f"and DoRA: {_NOT_MERGEABLE.get(name, MERGE)}"
        )
    raise UserError(
        f"{adapter.reference}: '{name}' in adapter_config.json is unknown to peft {peft.__version__}: install a peft "
        "that knows it, or take it out of that file if it changes nothing"
    )


@dataclass(frozen=True)
class Factor:
    """One of the two matrices whose product is added to a weight.

    Attributes:
        module: The module that has the weight.
        role: Which of the two.
        entry: Where it is in the adapter's file.
        of_embedding: Whether the module is an embedding: its input is token ids and not numbers.
    """

    module: str
    role: Role
    entry: TensorEntry
    of_embedding: bool


def factors(adapter: Checkpoint) -> dict[tuple[str, Role], Factor]:
    """Return the factors in an adapter's file by module name and role, in the file's order of names.

    Raises:
        UserError: A factor is empty or not of a floating-point type, it lacks its partner, or their ranks differ.
    """
    found: dict[tuple[str, Role], Factor] = {}
    file = adapter.weights[ADAPTER_FILE]
    for key, entry in sorted(file.entries.items()):
        if (factor := _factor(adapter, entry)) is not None:
            if 0 in entry.shape and adapter.config.get("r") != 0:
                raise UserError(f"{file.path}: '{key}' is empty ({list(entry.shape)}): {NOT_GATHERED}")
            if len(entry.shape) < 2:
                raise UserError(f"{file.path}: '{key}' is flat ({list(entry.shape)}), no matrix: {NOT_GATHERED}")
            if entry.dtype not in FLOAT_BYTES:
                raise UserError(
                    f"{file.path}: '{key}' is {entry.dtype}: only floating-point factors can be repaired: save it "
                    "in another type"
                )
            found[factor.module, factor.role] = factor
    for module, role in found:
        partner = found.get((module, "lora_B" if role == "lora_A" else "lora_A"))
        if partner is None:
            raise UserError(
                f"{file.path}: '{found[module, role].entry.key}' has no partner: the adapter is incomplete: save or "
                "fetch it again"
            )
        if found[module, "lora_A"].entry.shape[0] != found[module, "lora_B"].entry.shape[1]:
            raise UserError(
                f"{file.path}: lora_A and lora_B of {module} have different ranks: the adapter is broken: save or "
                "fetch it again"
            )
    return found


def _factor(adapter: Checkpoint, entry: TensorEntry) -> Factor | None:
    name = _name(adapter, entry.key)
    if (match := _FACTOR.match(name)) is None or bool(match["embedding"]) == name.endswith(".weight"):
        return None
    role: Role = "lora_A" if match["letter"] == "A" else "lora_B"
    return Factor(match["module"], role, entry, bool(match["embedding"]))


def _no_matrix(path: Path, entry: TensorEntry) -> UserError:
    return UserError(
        f"{path}: '{entry.key}' has shape {list(entry.shape)}: only LoRA on matrices can be repaired: "
        "train it without such layers"
    )


def other_tensors(adapter: Checkpoint) -> list[str]:
    """Return the names of an adapter's tensors that are no factors and no magnitudes, as a whole trained head."""
    entries = adapter.weights[ADAPTER_FILE].entries
    ours = {key for key in _keys(adapter) if _factor(adapter, entries[key])} | magnitudes(adapter).keys()
    return [key for key in _keys(adapter) if key not in ours]


def magnitudes(adapter: Checkpoint) -> dict[str, str]:
    """Return the module of each magnitude vector of a DoRA adapter, by the vector's name; empty for other adapters."""
    found = {key: magnitude_of(_name(adapter, key)) for key in _keys(adapter)} if is_dora(adapter) else {}
    return {key: module for key, module in found.items() if module is not None}


def _keys(adapter: Checkpoint) -> list[str]:
    return sorted(adapter.weights[ADAPTER_FILE].entries)


def _name(adapter: Checkpoint, key: str) -> str:
    """Return what peft calls a tensor of an adapter; where no model is known yet, what the file calls it."""
    return adapter.peft_names.get(key, key)


def other_tensors_base_name(key: str) -> str:
    """Return the base model's name for a tensor of an adapter that is no factor: a whole module or a bias."""
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
    return re.sub(r"\.modules_to_save(\.default)?\.", ".", name)


def require_fits(adapter: Checkpoint, model: nn.Module, reference: str) -> None:
    """Refuse an adapter whose tensors do not fit the model's modules.

    Args:
        adapter: The adapter, which knows what peft calls its tensors.
        model: The model without adapters.
        reference: What the user calls it.

    Raises:
        UserError: Names the first module that is missing or has another shape.
    """
    path = adapter.weights[ADAPTER_FILE].path
    found = factors(adapter)
    if not found:
        raise unread(adapter, _first_alike(adapter), model, reference)
    for (module, role), factor in found.items():
        entry = factor.entry
        try:
            target = model.get_submodule(module)
        except AttributeError as error:
            raise unread(adapter, entry.key, model, reference) from error
        if len(entry.shape) != 2 and not isinstance(target, _CONVOLUTIONS):
            raise _no_matrix(path, entry)
        shape = _matrix_shape(target)
        wanted = entry.shape[1] if role == "lora_A" else entry.shape[0]
        if wanted not in shape:
            if factor.of_embedding:
                _require_rows(adapter, model, reference)
            sides = f"weights of {' x '.join(map(str, shape))}" if shape else "no weight"
            raise UserError(
                f"{adapter.reference}: an adapter of another base: {role} of {module} is "
                f"{' x '.join(map(str, entry.shape))}, {reference} has {sides} there: "
                "name the model that it was trained on"
            )
    _require_rows(adapter, model, reference)


def _first_alike(adapter: Checkpoint) -> str:
    """Return the first tensor that is named as one of LoRA, if any is."""
    return min(_keys(adapter), key=lambda key: ("lora_" not in key, key))


def _require_rows(adapter: Checkpoint, model: nn.Module, reference: str) -> None:
    """Refuse an adapter that was trained after tokens were added, on a model without them."""
    own: dict[str, Any] = dict(model.named_parameters())
    for key in other_tensors(adapter):
        shape = adapter.weights[ADAPTER_FILE].entries[key].shape
        name = other_tensors_base_name(_name(adapter, key))
        if 0 in shape:
            raise UserError(f"{adapter.reference}: '{key}' is empty ({list(shape)}): {NOT_GATHERED}")
        there = tuple(own[name].shape) if name in own else None
        if there is None or len(there) != 2 or shape[1:] != there[1:] or shape[0] == there[0]:
            continue
        if shape[0] < there[0]:
            raise UserError(
                f"{adapter.reference}: '{key}' has {shape[0]:,} rows, {reference} has {there[0]:,}: an adapter of "
                "another base, or of one with another vocabulary: name the model that it was trained on"
            )
        raise UserError(
            f"{adapter.reference}: '{key}' has {shape[0]:,} rows, {reference} has {there[0]:,}: tokens were added "
            f"before it was trained: open that model with transformers, model.resize_token_embeddings({shape[0]}), "
            "model.save_pretrained(DIR), and name DIR as MODEL"
        )


def _matrix_shape(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a module's matrix before it was packed; empty for a module without one."""
    sides = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if all(isinstance(side, int) for side in sides):
        return sides  # type: ignore[return-value]
    weight = getattr(module, "weight", None)
    return () if weight is None else tuple(weight.shape)


def require_same_base(adapter: Checkpoint, base: Checkpoint) -> None:
    """Refuse an adapter that names another base, if that base is on this disk and can be opened.

    Raises:
        UserError: The weights of the named base differ from those of ``base``.
    """
    named = base_folder(adapter)
    if named is None or named.resolve() == base.folder.resolve():
        return
    try:
        trained_on = open_model_checkpoint(str(named))
    except UserError:
        # Not needed when MODEL is given: whether the adapter fits is checked when it is loaded.
        return
    if not same_tensors(trained_on, base) and not _has_rows_added(base, trained_on):
        raise UserError(
            f"{adapter.reference}: an adapter of another base: it was trained on {named}, "
            f"whose weights differ from {base.reference}: name that one as MODEL"
        )


def _has_rows_added(base: Checkpoint, first: Checkpoint) -> bool:
    """Whether a checkpoint is another one to whose embeddings rows were added, as for new tokens."""
    places = [{key: file for file in side.weights.values() for key in file.entries} for side in (base, first)]
    if places[0].keys() != places[1].keys():
        return False
    added = 0
    for key, file in places[0].items():
        other = places[1][key]
        entry, was = file.entries[key], other.entries[key]
        if entry.shape == was.shape:
            if not file.holds_the_same(key, other, key):
                return False
            continue
        if entry.dtype not in FLOAT_BYTES or entry.dtype != was.dtype or len(entry.shape) != 2 or len(was.shape) != 2:
            return False
        rows = was.shape[0]
        if entry.shape[1] != was.shape[1] or entry.shape[0] < rows:
            return False
        if not torch.equal(file.read_rows(key, 0, rows), other.read_rows(key, 0, rows)):
            return False
        added += 1
    return added > 0


def base_reference(adapter: Checkpoint) -> str:
    """Return the folder, or the name on the Hub, of the base that an adapter names.

    Raises:
        UserError: It names none, or a folder that is not here.
    """
    if (folder := base_folder(adapter)) is not None:
        return str(folder)
    name = str(adapter.config.get("base_model_name_or_path") or "")
    if not name or not may_be_on_the_hub(name):
        problem = f"names a base that is not here ({name})" if name else "names no base model"
        raise UserError(f"{adapter.reference}: the adapter {problem}: {_pass_model(adapter)}")
    return name


def base_not_found(adapter: Checkpoint, error: UserError) -> UserError:
    """Return the error of an adapter whose base the Hub did not give."""
    return UserError(f"{adapter.reference}: the adapter's base: {error.text}, or {_pass_model(adapter)}")


def _pass_model(adapter: Checkpoint) -> str:
    return f"pass MODEL {setting('adapter')} {adapter.reference}"


def may_be_on_the_hub(name: str) -> bool:
    """Whether a name in an adapter's configuration may be meant for the Hub, and not for a folder of another machine.

    Args:
        name: As trainers write it: a Hub id, or the path that they loaded the base from.
    """
    if not is_hub_id(name):
        return False
    owner, _, model = name.rpartition("/")
    return (owner or model).lower() not in _FOLDERS.split() and not _CHECKPOINT.match(model)


def base_folder(adapter: Checkpoint) -> Path | None:
    """Return the local folder that an adapter names as its base: as written, or relative to the adapter."""
    name = adapter.config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    for candidate in (Path(name).expanduser(), adapter.folder / name):
        if (candidate / "config.json").is_file():
            return candidate
    return None


def adapter_sites(adapter: Checkpoint, model: PeftModel) -> tuple[Site, ...]:
    """Return the sites of an open adapter: for every adapted matrix of the part that reads text its A, then its B."""
    modules, reads_text = dict(model.named_modules()), _reading_text(model)
    sites = []
    for (module, role), factor in factors(adapter).items():
        entry, layer = factor.entry, _layer(adapter, factor, modules)
        if factor.of_embedding or layer not in reads_text:
            continue
        if len(entry.shape) != 2:
            raise _no_matrix(adapter.weights[ADAPTER_FILE].path, entry)
        # A's input is the module's own, so that q, k and v can share one sum; B's is what A puts out.
        observed = layer if role == "lora_A" else layer.lora_B[ADAPTER_NAME]
        shape = (entry.shape[0], entry.shape[1])
        scaling = float(layer.scaling[ADAPTER_NAME])
        sites.append(Site(f"{module}.{role}", module, role, ADAPTER_FILE, entry.key, shape, scaling, (observed,)))
    return tuple(sorted(sites, key=_network_order))


@dataclass(frozen=True)
class ProductOutside:
    """A LoRA update that is no site: that of an embedding, or of a part that reads something else than text.

    Attributes:
        factor_A: Its A.
        factor_B: Its B, without which it adds nothing.
        scaling: What B A is multiplied by.
    """

    factor_A: TensorEntry
    factor_B: TensorEntry
    scaling: float


def merges_otherwise(adapter: Checkpoint, model: PeftModel) -> bool:
    """Whether peft's merge would answer otherwise: it adds to both of two tied tensors what was meant for one."""
    tied = {name.removesuffix(".weight") for pair in tied_names(model.get_base_model()).items() for name in pair}
    return any(module in tied for module, _ in factors(adapter))


def products_outside(adapter: Checkpoint, model: PeftModel) -> Iterator[ProductOutside]:
    """Yield the LoRA updates of an open adapter that are no sites."""
    modules, reads_text = dict(model.named_modules()), _reading_text(model)
    found = factors(adapter)
    for (module, role), factor in found.items():
        layer = _layer(adapter, factor, modules)
        if role == "lora_B" and (factor.of_embedding or layer not in reads_text):
            yield ProductOutside(found[module, "lora_A"].entry, factor.entry, float(layer.scaling[ADAPTER_NAME]))


def _layer(adapter: Checkpoint, factor: Factor, modules: Mapping[str, nn.Module]) -> Any:
    layer: Any = modules.get(PREFIX + factor.module)
    own_name = factor.role.replace("lora_", "lora_embedding_") if factor.of_embedding else factor.role
    if layer is None or ADAPTER_NAME not in getattr(layer, own_name, {}):
        raise UserError(
            f"{adapter.reference}: {ADAPTER_FILE} holds {own_name} of {factor.module}, which its configuration does "
            "not adapt: save or fetch it again"
        )
    return layer


def _reading_text(model: PeftModel) -> set[nn.Module]:
    """Return the modules of the decoder and the head, where a model has other parts, such as a vision tower; or all."""
    whole: Any = model.get_base_model()
    if whole.config.get_text_config() is whole.config:
        return set(whole.modules())
    parts = [part for part in (whole.get_decoder(), whole.get_output_embeddings()) if part is not None]
    return {module for part in parts for module in part.modules()}


def _network_order(site: Site) -> tuple[list[tuple[int, str]], str]:
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in site.module.split(".")]
    return parts, site.role
