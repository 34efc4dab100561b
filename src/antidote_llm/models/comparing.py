"""Compares a fine-tune's tensors with those of the aligned model that it started from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from transformers import PreTrainedModel

from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.configuration import empty_model, require_same_computation
from antidote_llm.models.conversion import missed, names_in_model
from antidote_llm.models.naming import TensorNames
from antidote_llm.models.opening import OpenModel
from antidote_llm.models.stored import StoredTensor
from antidote_llm.models.tensor_files import DTYPES

_Pair: TypeAlias = tuple[StoredTensor, StoredTensor]


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints of one model, tensor by tensor.

    Attributes:
        names: Where the aligned model's tensors lie.
        pairs: Every floating-point tensor of the fine-tune and what it was, by its key in the fine-tune's files.
        repeated: The keys of those that are another one once more, under the second name of a tied tensor.
    """

    names: TensorNames
    pairs: Mapping[str, _Pair]
    repeated: frozenset[str]


def compared(opened: OpenModel, aligned: Checkpoint) -> Comparison:
    """Find every tensor of a fine-tune in the aligned model, however either names, types or splits them.

    Raises:
        UserError: The aligned model computes something else, or has other tensors or shapes.
    """
    model, aligned_model = opened.causal_model, empty_model(aligned, opened.trust_remote_code)
    in_model, is_whole = names_in_model(aligned, aligned_model), _is_whole_of(aligned_model, model)
    if is_whole:
        in_model = _names_in_text(in_model, aligned_model)
    own_in_model = names_in_model(opened.base, model)
    own = TensorNames.of(opened.base, model, {**in_model, **own_in_model})
    names = TensorNames.of(aligned, model if is_whole else aligned_model, {**own_in_model, **in_model})
    if more := missed([key for key in own.all if names.find(key) is None], model):
        raise _lacking(aligned, more[0], opened.base)
    comparable = in_model if is_whole else names.all
    if more := missed([key for key in comparable if own.find(key) is None], aligned_model):
        raise _lacking(opened.base, more[0], aligned)
    pairs = dict(_pairs(own, names, opened, aligned))
    require_same_computation(opened.base, aligned, opened.trust_remote_code)
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    _require_tied(ties, names, opened.base, aligned)
    repeated = frozenset(first.entry.key for first, second in _doubled(ties, own) if _same(first, second))
    return Comparison(names, pairs, repeated)


def _is_whole_of(whole: PreTrainedModel, model: PreTrainedModel) -> bool:
    """Whether a model that also sees has a text part of another model's kind, which is no such model itself."""
    text = type(whole.config.get_text_config())
    return type(whole.config) is not text and type(model.config) is text


def _names_in_text(in_whole: Mapping[str, str], whole: PreTrainedModel) -> Mapping[str, str]:
    """Return what the text part by itself calls the stored tensors of a model that also sees, without its other parts.

    Args:
        in_whole: What the whole model calls them, by key.
        whole: The model that also sees.
    """
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


def _pairs(own: TensorNames, names: TensorNames, opened: OpenModel, aligned: Checkpoint) -> Iterator[tuple[str, _Pair]]:
    for key, stored in own.all.items():
        twin = names.find(key)
        if twin is None:
            continue
        if twin.entry.shape != stored.entry.shape:
            raise _other_shape(key, stored, twin, opened, aligned)
        if stored.entry.dtype in DTYPES:
            yield key, (stored, twin)


def _other_shape(
    key: str, stored: StoredTensor, twin: StoredTensor, opened: OpenModel, aligned: Checkpoint
) -> UserError:
    shapes = [" x ".join(map(str, each.entry.shape)) for each in (twin, stored)]
    kind, mend = "shape", ""
    if stored.entry.shape[:1] == (opened.vocabulary_size,) and stored.entry.shape[1:] == twin.entry.shape[1:]:
        kind = "vocabulary"
        mend = "; where that added tokens, a copy with as many (resize_token_embeddings in transformers)"
    return UserError(
        f"{aligned.reference}: {key} is {shapes[0]}, in {opened.base.reference} it is {shapes[1]}: an aligned model of "
        f"another {kind}: name the one that the fine-tune started from{mend}"
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
