"""LoRA adapters: which kinds are understood, and their sites."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import peft
from peft import LoraConfig, PeftModel
from torch import nn

from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint import Checkpoint, open_model_checkpoint, same_tensors
from antidote_llm.models.dora import is_dora, magnitude_of
from antidote_llm.models.sites import Role, Site
from antidote_llm.models.tensor_files import DTYPES, TensorEntry

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_NAME = "default"
_PREFIX = "base_model.model."
_FACTOR = re.compile(rf"^{re.escape(_PREFIX)}(?P<module>.+)\.(?P<role>lora_[AB])\.weight$")
# Settings of LoraConfig that leave the forward pass B A x, times the scaling, on top of the base's. All others do not,
# or nobody has looked yet: an adapter that has one set is refused by that name.
_WHAT_IT_IS = ("peft_type", "task_type", "auto_mapping", "peft_version", "revision", "base_model_name_or_path")
_WHERE = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias"),
)
_HOW_MUCH = ("r", "lora_alpha", "use_rslora")
_TRAINING = ("inference_mode", "lora_dropout", "runtime_config")
# What A and B began as, which tells nothing about what they are.
_BEGINNING = ("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config")
# Sizes of what is not switched on.
_IDLE = ("megatron_core", "qalora_group_size")
_UNDERSTOOD = {*_WHAT_IT_IS, *_WHERE, *_HOW_MUCH, *_TRAINING, *_BEGINNING, *_IDLE, "use_dora"}
# Ways to begin a LoRA that also change the base's own weights, so that the base is not the aligned model.
_INITS_THAT_MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MERGE = "merge it into its base (merge_and_unload in peft) and repair the result with --aligned BASE"


def require_plain_lora(adapter: Checkpoint) -> None:
    """Refuse adapters whose A and B do not make up the update alone.

    Raises:
        UserError: Names the kind or the variant.
    """
    kind = str(adapter.config.get("peft_type") or "").upper()
    if kind != "LORA":
        raise UserError(
            f"{adapter.reference}: a {kind or 'nameless'} adapter cannot be repaired, only LoRA: where peft can, "
            f"{_MERGE}"
        )
    for name, value in adapter.config.items():
        if value and name not in _UNDERSTOOD:
            _refuse_setting(adapter, name)
    start = str(adapter.config.get("init_lora_weights")).lower()
    if start.startswith(_INITS_THAT_MOVE_THE_BASE):
        raise UserError(
            f"{adapter.reference}: LoRA begun with '{start}' cannot be repaired, because it changes the base's weights "
            "too: convert it to a plain LoRA when saving it (path_initial_model_for_weight_conversion in peft)"
        )
    if not factors(adapter):
        raise UserError(
            f"{adapter.reference}: {ADAPTER_FILE} holds no lora_A or lora_B matrix: name the folder of a LoRA "
            "adapter, or save it again"
        )


def _refuse_setting(adapter: Checkpoint, name: str) -> NoReturn:
    if name == "target_parameters":
        raise UserError(
            f"{adapter.reference}: LoRA on experts ('{name}') cannot be repaired yet, because its A and B hold "
            f"those of all experts interleaved: {_MERGE}"
        )
    if name in {field.name for field in dataclasses.fields(LoraConfig)}:
        raise UserError(
            f"{adapter.reference}: LoRA with '{name}' cannot be repaired yet, only plain LoRA, rank-stabilised LoRA "
            f"and DoRA: {_MERGE}"
        )
    raise UserError(
        f"{adapter.reference}: '{name}' in adapter_config.json is nothing that peft {peft.__version__} knows: install "
        "a peft that does, or take it out of that file if it changes nothing"
    )


def factors(adapter: Checkpoint) -> dict[tuple[str, Role], TensorEntry]:
    """Return the factor matrices of an adapter file by module name and role, in the file's order of names.

    Raises:
        UserError: A factor is not a floating-point matrix, a factor lacks its partner, or their ranks differ.
    """
    found: dict[tuple[str, Role], TensorEntry] = {}
    file = adapter.weights[ADAPTER_FILE]
    for key, entry in sorted(file.entries.items()):
        if match := _FACTOR.match(key):
            if len(entry.shape) != 2:
                raise UserError(
                    f"{file.path}: '{key}' has shape {list(entry.shape)}: only LoRA on matrices can be repaired: "
                    "train it without such layers"
                )
            if entry.dtype not in DTYPES:
                raise UserError(
                    f"{file.path}: '{key}' is {entry.dtype}: only floating-point factors can be repaired: save it "
                    "in another type"
                )
            role: Role = "lora_A" if match["role"] == "lora_A" else "lora_B"
            found[match["module"], role] = entry
        elif "lora_" in key and key not in magnitudes(adapter):
            raise UserError(
                f"{file.path}: '{key}' is not a plain LoRA factor: this adapter cannot be repaired whole: {_MERGE}"
            )
    for module, role in found:
        partner = found.get((module, "lora_B" if role == "lora_A" else "lora_A"))
        if partner is None:
            raise UserError(
                f"{file.path}: '{found[module, role].key}' has no partner: the adapter is incomplete: save or fetch "
                "it again"
            )
        if found[module, "lora_A"].shape[0] != found[module, "lora_B"].shape[1]:
            raise UserError(
                f"{file.path}: lora_A and lora_B of {module} have different ranks: the adapter is broken: save or "
                "fetch it again"
            )
    return found


def other_tensors(adapter: Checkpoint) -> list[str]:
    """Return the names of an adapter's tensors that are no factors and no magnitudes, as a whole trained head."""
    ours = {key for key in _keys(adapter) if _FACTOR.match(key)} | magnitudes(adapter).keys()
    return [key for key in _keys(adapter) if key not in ours]


def magnitudes(adapter: Checkpoint) -> dict[str, str]:
    """Return the module that each of a DoRA adapter's magnitude vectors belongs to, by name; empty where it is none."""
    found = {key: magnitude_of(key) for key in _keys(adapter)} if is_dora(adapter) else {}
    return {key: module for key, module in found.items() if module is not None}


def _keys(adapter: Checkpoint) -> list[str]:
    return sorted(adapter.weights[ADAPTER_FILE].entries)


def other_tensors_base_name(key: str) -> str:
    """Return the base model's name for a tensor of an adapter that is no factor: a whole module or a bias."""
    name = key.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
    return re.sub(r"\.modules_to_save(\.default)?\.", ".", name)


def require_fits(adapter: Checkpoint, model: nn.Module, reference: str) -> None:
    """Refuse an adapter whose factors do not fit the model's modules.

    Raises:
        UserError: Names the first module that is missing or has another shape.
    """
    for (module, role), entry in factors(adapter).items():
        try:
            target = model.get_submodule(module)
        except AttributeError as error:
            raise UserError(
                f"{adapter.reference}: an adapter of another base: {reference} has no module {module}: "
                "name the model that it was trained on"
            ) from error
        shape = _matrix_shape(target)
        wanted = entry.shape[1] if role == "lora_A" else entry.shape[0]
        if wanted not in shape:
            sides = f"weights of {' x '.join(map(str, shape))}" if shape else "no weight"
            raise UserError(
                f"{adapter.reference}: an adapter of another base: {role} of {module} is "
                f"{' x '.join(map(str, entry.shape))}, {reference} has {sides} there: "
                "name the model that it was trained on"
            )


def _matrix_shape(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a module's matrix, of a packed one what it was before; empty where there is none."""
    sides = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if all(isinstance(side, int) for side in sides):
        return sides  # type: ignore[return-value]
    weight = getattr(module, "weight", None)
    return () if weight is None else tuple(weight.shape)


def require_same_base(adapter: Checkpoint, base: Checkpoint) -> None:
    """Refuse an adapter that names another base, where that base lies on this disk and can be opened.

    Raises:
        UserError: The weights of the named base differ from those of ``base``.
    """
    named = base_folder(adapter)
    if named is None or named.resolve() == base.folder.resolve():
        return
    try:
        trained_on = open_model_checkpoint(str(named))
    except UserError:
        # Not needed where MODEL is given: whether the adapter fits is seen when it is put on.
        return
    if not same_tensors(trained_on, base):
        raise UserError(
            f"{adapter.reference}: an adapter of another base: it was trained on {named}, "
            f"whose weights differ from {base.reference}: name that one as MODEL"
        )


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
    """Return the sites of an open adapter: for every adapted module its A, then its B."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    sites = []
    for (module, role), entry in factors(adapter).items():
        layer: Any = modules.get(_PREFIX + module)
        if layer is None or ADAPTER_NAME not in getattr(layer, role, {}):
            raise UserError(
                f"{adapter.reference}: {ADAPTER_FILE} holds {role} of {module}, which its configuration does not "
                "adapt: save or fetch it again"
            )
        # A's input is the module's own, so that q, k and v can share one sum; B's is what A puts out.
        observed = layer if role == "lora_A" else layer.lora_B[ADAPTER_NAME]
        shape = (entry.shape[0], entry.shape[1])
        scaling = float(layer.scaling[ADAPTER_NAME])
        sites.append(Site(f"{module}.{role}", module, role, ADAPTER_FILE, entry.key, shape, scaling, (observed,)))
    known = {site.module for site in sites}
    for name, layer in modules.items():
        module = name.removeprefix(_PREFIX)
        if ADAPTER_NAME in getattr(layer, "lora_A", {}) and module not in known:
            raise UserError(
                f"{adapter.reference}: {ADAPTER_FILE} lacks {module}, which its configuration adapts: save or fetch "
                "it again"
            )
    return tuple(sorted(sites, key=_network_order))


def _network_order(site: Site) -> tuple[list[tuple[int, str]], str]:
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in site.module.split(".")]
    return parts, site.role
