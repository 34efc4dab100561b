"""What a checkpoint that is saved anew takes over from the one that it was trained from: all but weights."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from antidote_llm.artifacts.files import clone_file
from antidote_llm.models.contents import contents

_TOKENIZERS = (
    *("tokenizer*", "*/tokenizer*", "vocab*", "merges*", "tekken*", "chat_template*", "additional_chat_templates/*"),
    *("*.model", "*.model.v*", "*.tiktoken", "*.bpe", "*.codes", "*.spm", "*.tokenizer"),
)
# Part of tokenizer.json and tokenizer_config.json since transformers 5, which writes them no more.
_MERGED = ("added_tokens.json", "special_tokens_map.json")
# Processors and their parts, folders of generation code and of sentence-transformers, code, and what the licence asks.
_OTHERS = ("*config.json", "*.py", "custom_generate/*", "*/*", "modules.json", "LICENSE*", "NOTICE*", "COPYING*")


def carry_over(source: Path, target: Path, *, model: bool = True, tokenizer: bool = True) -> list[str]:
    """Copy what a saved model lacks of the folder that it was trained from: processors, templates, vocabularies, code.

    What was saved stays as it is.

    Args:
        source: The folder that it was trained from.
        target: Where it was saved.
        model: Whether what goes with the model is taken over: processors, code and the like.
        tokenizer: Whether what goes with the tokenizer is: it may be another folder's.

    Returns:
        The names of the files that were not taken over: what is said of the other model, as its README and results.
    """
    left = []
    for name in contents(source, ()).files:
        if (target / name).exists() or name in _MERGED:
            continue
        if tokenizer if _is_one_of(name, _TOKENIZERS) else model and _is_one_of(name, _OTHERS):
            clone_file(source / name, target / name)
        else:
            left.append(name)
    return left


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
