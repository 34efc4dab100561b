"""Thoughts: what a reasoning model writes between ``<think>`` and ``</think>`` before its reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from antidote_llm.errors import tokenizer_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENING, CLOSING = "<think>", "</think>"


def without_thought(text: str) -> str:
    """Return what follows the last closing tag; a text without one, even an unclosed thought, is returned unchanged."""
    _, mark, reply = text.rpartition(CLOSING)
    return reply.lstrip() if mark else text


def is_thinking(prompt_text: str) -> bool:
    """Whether a prompt ends in an opened thought."""
    return prompt_text.rstrip().endswith(OPENING)


def closed(prompt_text: str) -> str:
    """Close the thought at the end of a prompt, if it has one."""
    return f"{prompt_text.rstrip()}\n\n{CLOSING}\n\n" if is_thinking(prompt_text) else prompt_text


def continuing(prompt_text: str, response: str) -> str:
    """Return a response as it continues a prompt that ends in an opened thought, in a closed one, or in none."""
    if prompt_text.rstrip().endswith(CLOSING):
        return without_thought(response)
    if not is_thinking(prompt_text):
        return response
    if response.lstrip().startswith(OPENING):
        return response.lstrip().removeprefix(OPENING).lstrip("\n")
    return response if CLOSING in response else f"\n{CLOSING}\n\n{response}"


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode an answer without special tokens and outer white space, but with the tag that closes its thought."""
    mark = tokenizer.added_tokens_encoder.get(CLOSING)
    if mark is None or mark not in ids:
        return _decoded(tokenizer, ids).strip()
    last = len(ids) - 1 - list(ids)[::-1].index(mark)
    thought, reply = (_decoded(tokenizer, part) for part in (ids[:last], ids[last + 1 :]))
    return f"{thought}{CLOSING}{reply}".strip()


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    with tokenizer_errors(tokenizer.name_or_path, "decode an answer"):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def decoded_reply(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode an answer without its thought, special tokens and outer white space."""
    return without_thought(decoded(tokenizer, ids)).strip()
