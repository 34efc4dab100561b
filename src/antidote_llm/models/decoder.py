"""Finds a decoder's parts by their position and not by their class: layers, attention, feed-forward, norm and head."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from antidote_llm.errors import UserError

_ATTENTION = re.compile(r"(^|_)(attn|attention)$")
# OPT's layers hold their two linears themselves: the second one's output is what the feed-forward part gives.
_FEED_FORWARD = re.compile(r"(^|_)(mlp|ffn|feed_forward|block_sparse_moe|moe|experts)$|^fc2$")
# In this order; Bloom has a norm after its embeddings too.
_READOUT = (re.compile(r"^(?!.*embed)(.*_)?(norm|ln|layer_?norm)(_f)?$"), re.compile(r"^project_out$"))


def decoder_layers(model: PreTrainedModel | PeftModel, reference: str) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a model's decoder layers, the name as without adapters.

    It is the longest that is inside no other, and in the part that reads text, where a model has other parts.

    Raises:
        UserError: No list was found.
    """
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    text = set(bare.get_decoder().modules())
    lists: dict[str, nn.ModuleList] = {}
    for name, module in bare.named_modules():
        if module in text and isinstance(module, nn.ModuleList) and not any(name.startswith(f"{o}.") for o in lists):
            lists[name] = module
    if not lists:
        raise UserError(
            f"{reference}: no list of decoder layers was found: name a model whose layers are one nn.ModuleList"
        )
    longest = max(lists, key=lambda name: len(lists[name]))
    return longest, lists[longest]


@dataclass(frozen=True)
class Decoder:
    """The parts of a causal language model that defenses look at.

    Attributes:
        layers: The decoder layers, in order.
        attention: The attention module of each layer.
        feed_forward: The feed-forward module of each layer.
        readout: What stands between the last layer and the head, in order: a norm, a projection, or nothing.
        head: What turns hidden states into logits.
    """

    layers: tuple[nn.Module, ...]
    attention: tuple[nn.Module, ...]
    feed_forward: tuple[nn.Module, ...]
    readout: tuple[nn.Module, ...]
    head: nn.Module

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Read the hidden states of any layer as if it were the last: logits, shape [B, T, V]."""
        for module in self.readout:
            hidden_BTD = module(hidden_BTD)
        logits_BTV: Tensor = self.head(hidden_BTD)
        return logits_BTV


def find_decoder(model: PreTrainedModel | PeftModel) -> Decoder:
    """Find the parts of a model's decoder.

    Raises:
        UserError: There is no list of decoder layers, or no head, or a layer has no attention or feed-forward module.
    """
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    stack_name, stack = decoder_layers(whole, type(whole).__name__)
    head = whole.get_output_embeddings()
    if head is None:
        raise UserError(f"{type(whole).__name__} has no language-model head: this defense needs one")
    parent = whole.get_submodule(stack_name.rpartition(".")[0])
    return Decoder(
        tuple(stack),
        _one_each(stack, _ATTENTION, "attention", whole),
        _one_each(stack, _FEED_FORWARD, "feed-forward", whole),
        tuple(module for part in _READOUT for module in [_child(parent, part)] if module is not None),
        head,
    )


def _one_each(layers: nn.ModuleList, name: re.Pattern[str], what: str, model: nn.Module) -> tuple[nn.Module, ...]:
    found = []
    for index, layer in enumerate(layers):
        module = _child(layer, name)
        if module is None:
            raise UserError(f"{type(model).__name__}: layer {index} has no {what} module: this defense needs one")
        found.append(module)
    return tuple(found)


def _child(module: nn.Module, name: re.Pattern[str]) -> nn.Module | None:
    return next((child for own_name, child in module.named_children() if name.search(own_name)), None)
