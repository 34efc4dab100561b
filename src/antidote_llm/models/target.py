"""What a repair edits: the target, and the tensors of a fine-tune paired with those of the aligned model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from antidote_llm.choices import TargetName
from antidote_llm.errors import UserError, setting
from antidote_llm.io.safetensors_files import FLOAT_BYTES, TensorFile
from antidote_llm.io.torch_tensors import FLOAT_DTYPES
from antidote_llm.models.adapter import (
    MERGE,
    magnitudes,
    merges_otherwise,
    other_tensors,
    other_tensors_base_name,
    products_outside,
)
from antidote_llm.models.checkpoint import Checkpoint, StoredTensor, is_adapter, locate, open_model_checkpoint
from antidote_llm.models.config import empty_model, require_same_computation
from antidote_llm.models.dora import row_norms
from antidote_llm.models.from_pretrained import require_not_quantised
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.peft_names import copies
from antidote_llm.models.sites import Site, chosen_sites
from antidote_llm.models.tensor_names import ModelNames, TensorNames
from antidote_llm.models.weight_sites import weight_sites

_Pair: TypeAlias = tuple[StoredTensor, StoredTensor]


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints of one model, tensor by tensor.

    Attributes:
        names: Finds the aligned model's tensors.
        pairs: Every floating-point tensor of the fine-tune and what it was, by its key in the fine-tune's files.
        repeated: The keys of those that are another one again, under the second name of a tied tensor.
    """

    names: TensorNames
    pairs: Mapping[str, _Pair]
    repeated: frozenset[str]


def compared(opened: LoadedModel, aligned: Checkpoint) -> Comparison:
    """Find every tensor of a fine-tune in the aligned model, however either names, types or splits them.

    Raises:
        UserError: The aligned model computes something else, or has other tensors or shapes.
    """
    aligned_model = empty_model(aligned, opened.trust_remote_code)
    ours, theirs, is_whole = opened.names, ModelNames(aligned, aligned_model), _is_whole_of(aligned_model, opened)
    in_model = _names_in_text(theirs.in_model, aligned_model) if is_whole else theirs.in_model
    own = ours.with_names(opened.base, {**in_model, **ours.in_model})
    names = (ours if is_whole else theirs).with_names(aligned, {**ours.in_model, **in_model})
    if more := ours.needed(key for key in own.all if names.find(key) is None):
        raise _lacking(aligned, more[0], opened.base)
    comparable = in_model if is_whole else names.all
    if more := theirs.needed(key for key in comparable if own.find(key) is None):
        raise _lacking(opened.base, more[0], aligned)
    pairs = dict(_pairs(own, names, opened, aligned))
    require_same_computation(opened.base, aligned, opened.trust_remote_code)
    _require_tied(ours.tied, names, opened.base, aligned)
    repeated = frozenset(first.entry.key for first, second in _doubled(ours.tied, own) if _same(first, second))
    return Comparison(names, pairs, repeated)


def _is_whole_of(whole: PreTrainedModel, opened: LoadedModel) -> bool:
    """Whether a vision-language model has a text part of an open model's kind, which has none of the other parts."""
    text = type(whole.config.get_text_config())
    return type(whole.config) is not text and type(opened.causal_model.config) is text


def _names_in_text(in_whole: Mapping[str, str], whole: PreTrainedModel) -> Mapping[str, str]:
    """Return what the text model by itself calls the stored tensors of the text part of a vision-language model."""
    decoder = whole.get_decoder()
    within = next(name for name, module in whole.named_modules() if module is decoder)
    return {
        key: name.replace(within, whole.base_model_prefix, 1)
        for key, name in in_whole.items()
        if name.startswith((f"{within}.", "lm_head."))
    }


def _lacking(lacking: Checkpoint, key: str, other: Checkpoint) -> UserError:
    return UserError(
        f"{lacking.reference}: no {key}, which {other.reference} has: an aligned model of another shape, or in other "
        "parts: name the one that the fine-tune started from, saved as the fine-tune is"
    )


def _pairs(
    own: TensorNames, names: TensorNames, opened: LoadedModel, aligned: Checkpoint
) -> Iterator[tuple[str, _Pair]]:
    for key, stored in own.all.items():
        twin = names.find(key)
        if twin is None:
            continue
        if twin.entry.shape != stored.entry.shape:
            raise _other_shape(key, stored, twin, opened, aligned)
        if stored.entry.dtype in FLOAT_BYTES:
            yield key, (stored, twin)


def _other_shape(
    key: str, stored: StoredTensor, twin: StoredTensor, opened: LoadedModel, aligned: Checkpoint
) -> UserError:
    shapes = [" x ".join(map(str, each.entry.shape)) for each in (twin, stored)]
    kind, fix = "shape", ""
    if stored.entry.shape[:1] == (opened.vocabulary_size,) and stored.entry.shape[1:] == twin.entry.shape[1:]:
        kind = "vocabulary"
        fix = "; where that added tokens, a copy with as many (resize_token_embeddings in transformers)"
    return UserError(
        f"{aligned.reference}: {key} is {shapes[0]}, in {opened.base.reference} it is {shapes[1]}: an aligned model of "
        f"another {kind}: name the one that the fine-tune started from{fix}"
    )


def _require_tied(ties: Mapping[str, str], names: TensorNames, tuned: Checkpoint, aligned: Checkpoint) -> None:
    """Refuse an aligned model that has two tensors where the fine-tuned one has a single one under two names."""
    for first, second in _doubled(ties, names):
        if not _same(first, second):
            raise UserError(
                f"{aligned.reference}: {first.entry.key} is another tensor than {second.entry.key}, in "
                f"{tuned.reference} the two are one, which cannot go back to both: untie it there "
                "(tie_word_embeddings false, and both tensors saved)"
            )


def _doubled(ties: Mapping[str, str], names: TensorNames) -> Iterator[_Pair]:
    """Yield tensors that are tied in the model and that the files hold under each of their two names."""
    for pair in ties.items():
        first, second = (names.find(name) for name in pair)
        if first is not None and second is not None and first.entry.key != second.entry.key:
            yield first, second


def _same(first: StoredTensor, second: StoredTensor) -> bool:
    return first.file.holds_the_same(first.entry.key, second.file, second.entry.key)


_BLOCK_ENTRIES = 1 << 22


@dataclass(frozen=True)
class OutsideTensor:
    """One tensor that a fine-tune may have moved and that is no site, with what it was in the aligned model.

    Attributes:
        stored: Where it is stored.
        aligned: Where it is stored in the aligned model.
        repeated: Whether it is another one again, under a second name: it is restored like any, and measured once.
    """

    stored: StoredTensor
    aligned: StoredTensor
    repeated: bool = field(default=False, kw_only=True)

    @property
    def key(self) -> str:
        """Its name in its file."""
        return self.stored.entry.key

    @property
    def entries(self) -> int:
        """How many values it has."""
        return math.prod(self.stored.entry.shape)

    @property
    def item_bytes(self) -> int:
        """How many bytes a value has in the fine-tuned model's file."""
        return FLOAT_BYTES[self.stored.entry.dtype]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield flat blocks of it, fine-tuned and aligned, each in its own file's type.

        Raises:
            UserError: A value is NaN or infinite.
        """
        aligned = self.aligned.file.blocks(self.aligned.entry.key)
        yield from zip(self.stored.file.blocks(self.key), aligned, strict=True)

    def aligned_values(self) -> Tensor:
        """Read what it was in the aligned model, in the fine-tuned one's type.

        Raises:
            UserError: A value is NaN or infinite, or too large for that type.
        """
        values = self.aligned.file.read(self.aligned.entry.key)
        return _cast(values, self.aligned, FLOAT_DTYPES[self.stored.entry.dtype])


@dataclass(frozen=True)
class MagnitudeTensor(OutsideTensor):
    """The magnitudes of a DoRA module: at first the row norms of ``aligned``, the base's weight."""

    layer: nn.Module

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield them, and what they were at first."""
        yield self.stored.file.read(self.key), row_norms(self.layer, self.aligned)

    def aligned_values(self) -> Tensor:
        """Return what they were at first, in the adapter's type."""
        return row_norms(self.layer, self.aligned).to(FLOAT_DTYPES[self.stored.entry.dtype])


@dataclass(frozen=True)
class ProductTensor(OutsideTensor):
    """The B of a LoRA update that is no site; in the aligned model it was zero, and ``aligned`` is not read.

    Attributes:
        factor_A: Where its A is, which stays: without B it adds nothing.
        scaling: What B A is multiplied by.
    """

    factor_A: StoredTensor
    scaling: float

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield blocks of rows of the update, and zeros."""
        rows_B = self.stored.file.read(self.key).float().flatten(1)
        columns_A = self.scaling * self.factor_A.file.read(self.factor_A.entry.key).float().flatten(1)
        for block in torch.split(rows_B, max(1, _BLOCK_ENTRIES // columns_A.shape[1])):
            update = block @ columns_A
            yield update, torch.zeros_like(update)

    def aligned_values(self) -> Tensor:
        """Return zeros in the adapter's type."""
        return torch.zeros(self.stored.entry.shape, dtype=FLOAT_DTYPES[self.stored.entry.dtype])


@dataclass(frozen=True)
class Target:
    """What a repair edits, and what removed entries go back to.

    Attributes:
        name: ``adapter``: entries of A and B become 0. ``delta``: entries of a fine-tuned weight go back to the aligned
            value. ``weight``: entries of a weight become 0.
        checkpoint: The checkpoint whose files are edited.
        sites: Its matrices, in the order of the network.
        aligned: The aligned model, where there is one: of an adapter, its base.
        outside: Whatever else the fine-tune may have moved; empty where no aligned model is known.
        names: Finds the aligned model's tensors.
    """

    name: TargetName
    checkpoint: Checkpoint
    sites: tuple[Site, ...]
    aligned: Checkpoint | None
    outside: tuple[OutsideTensor, ...]
    names: TensorNames | None

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """The types that the files hold the sites in, as safetensors names them."""
        return frozenset(self.checkpoint.weights[site.file].entries[site.key].dtype for site in self.sites)

    def weight(self, site: Site, rows: tuple[int, int] | None = None) -> Tensor:
        """Read a site's matrix in the file's type, shape [rows, columns].

        Args:
            site: Which matrix.
            rows: The first row and the one after the last; by default all. Of a transposed site all are read.

        Raises:
            UserError: A value is NaN or infinite.
        """
        return _rows(self.checkpoint.weights[site.file], site.key, site, rows)

    def reference(self, site: Site, rows: tuple[int, int] | None = None) -> Tensor | None:
        """Read what a site's removed entries go back to, in the file's type; None for zero.

        Args:
            site: Which matrix.
            rows: As in :meth:`weight`.

        Raises:
            UserError: A value is NaN or infinite, or too large for the file's type.
        """
        if self.name != "delta" or self.names is None:
            return None
        stored = self.names.find(site.key)
        assert stored is not None
        values_OI = _rows(stored.file, stored.entry.key, site, rows)
        return _cast(values_OI, stored, FLOAT_DTYPES[self.checkpoint.weights[site.file].entries[site.key].dtype])


def _rows(file: TensorFile, key: str, site: Site, rows: tuple[int, int] | None) -> Tensor:
    start, stop = rows or (0, site.shape[0])
    if not site.transposed:
        return file.read_rows(key, start, stop, site.part)
    return site.turned(file.read_rows(key, 0, site.shape[1], site.part))[start:stop]


def _cast(values: Tensor, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    if values.dtype == dtype:
        return values
    cast = values.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        raise UserError(f"{stored.file.path}: '{stored.entry.key}' holds values that {dtype} cannot hold: convert both")
    return cast


def resolve_target(
    opened: LoadedModel,
    name: TargetName | Literal["auto"] = "auto",
    aligned: str | Path | None = None,
    pattern: str = "all",
) -> Target:
    """Find what there is to edit.

    Args:
        opened: The open model.
        name: The target; ``auto`` is the adapter where there is one, the delta where an aligned model is named.
        aligned: Folder or Hub id of the aligned model that the fine-tune started from.
        pattern: Which matrices: see :func:`antidote_llm.models.sites.in_group`.

    Raises:
        UserError: The target does not apply, the aligned model is another one, or a matrix cannot be covered.
    """
    if name == "auto":
        if opened.adapter is None and aligned is None:
            raise UserError(
                f"{opened.base.reference}: nothing to measure an update from: pass {setting('adapter')} DIR, or "
                f"{setting('aligned')} REF (the model that the fine-tune started from), or ask for "
                f"{setting('target')} weight by name"
            )
        name = "adapter" if opened.adapter is not None else "delta"
    if name == "adapter":
        return _adapter_target(opened, None if aligned is None else str(aligned), pattern)
    if opened.adapter is not None or opened.lower_adapters:
        raise _edits_a_whole_model(opened, name)
    if name == "weight" and aligned is not None:
        raise UserError(
            f"{setting('target')} weight sets weights to zero, not back to {setting('aligned')}: leave "
            "that out, or ask for delta"
        )
    if name == "delta" and aligned is None:
        raise UserError(
            f"{setting('target')} delta needs the model that the fine-tune started from: pass {setting('aligned')} REF"
        )
    require_not_quantised(opened.base, "edited")
    sites = weight_sites(opened.causal_model, opened.base, pattern)
    if aligned is None:
        return Target("weight", opened.base, sites, None, (), None)
    return _delta_target(opened, sites, str(aligned))


def _edits_a_whole_model(opened: LoadedModel, name: str) -> UserError:
    adapters = (*opened.lower_adapters, *([opened.adapter] if opened.adapter else []))
    assert isinstance(opened.model, PeftModel)
    if any(merges_otherwise(adapter, opened.model) for adapter in adapters):
        return UserError(
            f"{setting('target')} {name} edits a whole model: leave it out, and the adapter is repaired: "
            "to merge it would change "
            "it, because it adapts one of two tied tensors, embeddings or head"
        )
    return UserError(
        f"{setting('target')} {name} edits a whole model: leave it out, and the adapter is repaired; or "
        "merge the adapter first "
        "(merge_and_unload in peft) and name the merged folder as MODEL"
    )


def _adapter_target(opened: LoadedModel, aligned: str | None, pattern: str) -> Target:
    if opened.adapter is None:
        raise UserError(
            f"{opened.base.reference}: no adapter to repair: pass {setting('adapter')}, or name the adapter's folder"
        )
    if aligned is not None:
        raise UserError(
            f"{setting('aligned')}: the aligned model of an adapter is its base: leave {setting('aligned')} out"
        )
    names = opened.names
    if not opened.sites:
        raise UserError(
            f"{opened.adapter.reference}: it adapts no matrix of the part that reads text: there is nothing to repair: "
            "name the adapter of a model that writes"
        )
    outside = (
        *_adapter_outside(opened.adapter, names),
        *_magnitudes(opened.adapter, opened.causal_model, names),
        *_products(opened.adapter, opened.model),
    )
    return Target("adapter", opened.adapter, chosen_sites(opened.sites, pattern), opened.base, outside, names)


def _adapter_outside(adapter: Checkpoint, base: TensorNames) -> Iterator[OutsideTensor]:
    written_again = copies(adapter)
    for key in other_tensors(adapter):
        stored, aligned = adapter.tensors.get(key), base.find(other_tensors_base_name(key))
        if stored is None or aligned is None or aligned.entry.shape != stored.entry.shape:
            raise UserError(
                f"{adapter.reference}: '{key}' has no counterpart in the base's files, and what it changes cannot be "
                f"measured: {MERGE}"
            )
        yield OutsideTensor(stored, aligned, repeated=key in written_again)


def _products(adapter: Checkpoint, model: nn.Module) -> Iterator[OutsideTensor]:
    assert isinstance(model, PeftModel)
    for product in products_outside(adapter, model):
        factor_A, factor_B = (adapter.tensors[entry.key] for entry in (product.factor_A, product.factor_B))
        yield ProductTensor(factor_B, factor_B, factor_A=factor_A, scaling=product.scaling)


def _magnitudes(adapter: Checkpoint, model: nn.Module, base: TensorNames) -> Iterator[OutsideTensor]:
    for key, module in magnitudes(adapter).items():
        weight = base.find(f"{module}.weight")
        if weight is None:
            raise UserError(
                f"{adapter.reference}: '{key}' has no counterpart: the base's files hold no {module}.weight"
            )
        yield MagnitudeTensor(adapter.tensors[key], weight, model.get_submodule(module))


def _delta_target(opened: LoadedModel, sites: tuple[Site, ...], aligned_reference: str) -> Target:
    folder = locate(aligned_reference, trust_remote_code=opened.trust_remote_code)
    if is_adapter(folder):
        raise UserError(
            f"{setting('aligned')} {aligned_reference}: an adapter: name the whole model that the "
            "fine-tune started from, or "
            "merge the adapter into its base"
        )
    aligned = open_model_checkpoint(aligned_reference, folder)
    require_not_quantised(aligned, "an aligned model's")
    found, keys = compared(opened, aligned), {site.key for site in sites}
    outside = [
        OutsideTensor(*pair, repeated=key in found.repeated) for key, pair in found.pairs.items() if key not in keys
    ]
    return Target("delta", opened.base, sites, aligned, tuple(outside), found.names)
