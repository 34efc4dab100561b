"""What peft calls the tensors of an adapter's file on a model, and what is wrong with names that it does not know.

transformers has moved modules of some models since their adapters were saved: peft renames the tensors of these when it
loads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from antidote_llm.errors import UserError, setting
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.config import NAMES_OF_HEADS
from antidote_llm.models.peft_private import as_loaded

PREFIX = "base_model.model."
# What a module is called inside torch.compile, DistributedDataParallel, FSDP and activation checkpointing.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PART = re.compile(r"^(?P<module>.*?)\.?(?P<part>lora_(?:(?:embedding_)?[AB]|magnitude_vector))(?P<rest>\..*)?$")
_TEXT_PARTS = ("language_model", "text_model", "thinker", "llm")
_HEADS = re.compile(rf"(^|\.)({NAMES_OF_HEADS})(\.|$)")
# What peft adds to the name of a module that is trained whole.
_WHOLE = re.compile(r"\.(modules_to_save(\.default)?|original_module)(?=\.)")
_RENAME = "with safetensors.torch.load_file and save_file"


def as_peft_reads(adapter: Checkpoint, model: PreTrainedModel, adapter_name: str) -> Checkpoint:
    """Return an adapter that knows what peft calls its tensors.

    Args:
        adapter: The adapter.
        model: The model, without adapters.
        adapter_name: What the adapter will be called there: peft also reads names that have it in them.

    Raises:
        UserError: peft makes several tensors into one.
    """
    markers = {key: torch.empty(entry.shape, device="meta") for key, entry in _entries(adapter)}
    keys = {id(marker): key for key, marker in markers.items()}
    found = as_loaded(model, markers, adapter_name)
    inside = re.compile(rf"(\.lora_\w+)\.{re.escape(adapter_name)}(?=\.|$)")
    names = {keys[id(marker)]: inside.sub(r"\1", name) for name, marker in found.items() if id(marker) in keys}
    if made := [name for name, marker in found.items() if id(marker) not in keys]:
        raise UserError(
            f"{adapter.reference}: LoRA on experts one by one cannot be repaired, because peft loads it as "
            f"'{made[0]}': merge it into its base (merge_and_unload in peft) and repair the result with "
            f"{setting('aligned')} BASE"
        )
    return replace(adapter, peft_names=names)


def _entries(adapter: Checkpoint) -> Iterator[tuple[str, Any]]:
    for file in adapter.weights.values():
        yield from file.entries.items()


def require_all_read(adapter: Checkpoint, model: PeftModel, adapter_name: str, reference: str) -> None:
    """Refuse an adapter that peft has not read whole: it ignores unknown tensors without an error.

    Args:
        adapter: The adapter, which knows what peft calls its tensors.
        model: The model, with the adapter on it.
        adapter_name: What the adapter is called there.
        reference: What the user calls the model.

    Raises:
        UserError: Names the first tensor that was not read, or the first module that got none.
    """
    wanted = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False).keys()
    there = model.state_dict().keys()
    names = {name: key for key, name in adapter.peft_names.items()}
    written_again = copies(adapter)
    for name, key in names.items():
        if name not in wanted and name not in there and key not in written_again:
            raise unread(adapter, key, model.get_base_model(), reference)
    if missing := sorted(name for name in wanted - names.keys() if ".lora_" in name):
        module = missing[0].removeprefix(PREFIX).split(".lora_")[0]
        raise UserError(
            f"{adapter.reference}: the adapter's file lacks {module}, which its configuration adapts: save or fetch it "
            "again"
        )


def lacking(adapter: Checkpoint, name: str) -> UserError:
    """Return the error of a tensor that peft asks of an adapter's file and that is not in it."""
    keys, own_name = [key for key, _ in _entries(adapter)], ".".join(name.split(".")[-2:])
    same = [key for key in keys if _WHOLE.sub("", _plain(key)) == _plain(name)]
    alike = same or [key for key in keys if key.endswith(own_name)]
    fix = f"rename '{alike[0]}' so ({_RENAME})" if len(alike) == 1 else "save or fetch it again"
    return UserError(
        f"{adapter.reference}: the adapter's file lacks '{name}', which its configuration has (modules_to_save): {fix}"
    )


def copies(adapter: Checkpoint) -> frozenset[str]:
    """Return the tensors that peft writes in addition to those of a module trained whole, and ignores when it reads.

    It does so where tokens were added: the same values again, and those from before the training.
    """
    own = {name: key for key, name in adapter.peft_names.items()}
    return frozenset(
        key
        for name, key in own.items()
        if (plain := _WHOLE.sub("", name)) in own and _is_copy(adapter, key, own[plain])
    )


def _is_copy(adapter: Checkpoint, key: str, of: str) -> bool:
    (file,) = adapter.weights.values()
    return key != of and (".original_module." in key or file.holds_the_same(key, file, of))


def unread(adapter: Checkpoint, key: str, model: nn.Module, reference: str) -> UserError:
    """Return the error of a tensor of an adapter that peft would leave out on a model, with what is wrong with it."""
    if _HEADS.search(key.removeprefix(PREFIX)) and "lora_" not in key:
        return UserError(
            f"{adapter.reference}: '{key}' is the head of a classifier, reward or value model, and {reference} has "
            "none: name the adapter of a causal language model"
        )
    name = adapter.peft_names.get(key, key)
    if (match := _PART.match(name)) is None:
        return UserError(
            f"{adapter.reference}: peft would leave out '{key}', which {reference} has no place for: rename it if it "
            f"is misnamed, or take it out of the file ({_RENAME})"
        )
    modules = [own_name for own_name, _ in model.named_modules() if own_name]
    module = match["module"].removeprefix(PREFIX)
    meant = _meant(module, modules)
    if meant is None and (kind := _other_part(module, modules)) is not None:
        return UserError(
            f"{adapter.reference}: an adapter of {kind}: {reference} has no module {module}: name the model that it "
            "was trained on"
        )
    if (meant := meant or _alike(module, modules)) is None:
        return UserError(
            f"{adapter.reference}: an adapter of another base: {reference} has no module {module}: name the model that "
            f"it was trained on, or rename '{key}' if it is misnamed"
        )
    end = "" if "embedding" in match["part"] or "magnitude" in match["part"] else ".weight"
    better = f"{PREFIX}{meant}.{match['part']}{end}"
    if better == name and "magnitude" in name:
        return UserError(
            f"{adapter.reference}: '{key}' is a magnitude of DoRA, and its configuration is that of plain LoRA: "
            "set use_dora in adapter_config.json, if it was trained so"
        )
    if better == name:
        return UserError(
            f"{adapter.reference}: the adapter's file holds {match['part']} of {module} ('{key}'), which its "
            "configuration does not adapt: save or fetch it again"
        )
    return UserError(
        f"{adapter.reference}: peft would leave out '{key}', which is misnamed: on {reference} it must be "
        f"'{better}': rename all its tensors so ({_RENAME})"
    )


def _other_part(module: str, modules: Iterable[str]) -> str | None:
    """Return which kind of model a module is of, where the model at hand is the other kind; None if neither fits."""
    plain = _plain(module)
    if any(part in plain.split(".") for part in _TEXT_PARTS):
        return "the vision-language model" if _without(plain, _TEXT_PARTS) in modules else None
    return "the text model alone" if plain in {_without(name, _TEXT_PARTS) for name in modules} else None


def _alike(module: str, modules: Iterable[str]) -> str | None:
    """Return the one module of a model with the same name, apart from parts that transformers has removed or added."""
    moved = (*_TEXT_PARTS, "vision_model", "model")
    found = [name for name in modules if _without(name, moved) == _without(_plain(module), moved)]
    return found[0] if len(found) == 1 else None


def _meant(module: str, modules: Iterable[str]) -> str | None:
    """Return the one module of a model that a misnamed one must be: the same name without wrappers."""
    plain = _plain(module)
    known = list(modules)
    longer = [name for name in known if f".{plain}".endswith(f".{name}") and "." in name]
    if longer:
        return max(longer, key=len)
    shorter = [name for name in known if name.endswith(f".{plain}")] if "." in plain else []
    return shorter[0] if len(shorter) == 1 else None


def _plain(module: str) -> str:
    plain = _without(module, _WRAPPERS)
    while plain.startswith(PREFIX):
        plain = plain.removeprefix(PREFIX)
    return plain


def _without(module: str, parts: Iterable[str]) -> str:
    return ".".join(step for step in module.split(".") if step not in parts)
