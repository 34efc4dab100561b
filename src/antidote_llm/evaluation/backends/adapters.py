"""The same prompts under one adapter after another, on a base that is loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from antidote_llm.evaluation.backends.backend import TransformersBackend
from antidote_llm.evaluation.generation import Progress
from antidote_llm.models import OpenModel


def generate_with_adapters(
    opened: OpenModel,
    adapters: Mapping[str, Path | None],
    prompts_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    progress: Progress | None = None,
) -> dict[str, list[list[int]]]:
    """Return the greedy answers to all prompts under every adapter.

    Adapters are swapped in the memory of the model that is open: its batches are full as it is, and peft computes the
    adapters of a mixed batch one by one. Each answers as it would alone, to the bit. For vLLM:
    :meth:`~antidote_llm.evaluation.backends.VllmBackend.generate_with_adapters`.

    Args:
        opened: A model with or without an adapter. It must not be used afterwards.
        adapters: The folder of each adapter by a name of the caller's, None for the model without one.
        prompts_ids: Token ids of each prompt.
        max_new_tokens: Most tokens of an answer.
        eos_ids: Tokens that end an answer.
        pad_id: Any token id.
        progress: Called with the number of prompts answered, under all adapters together, and their total.

    Raises:
        UserError: An adapter does not fit the model, or a prompt does not.
    """
    found: dict[str, list[list[int]]] = {}
    for place, (name, folder) in enumerate(adapters.items()):
        opened = opened.without_adapter() if folder is None else opened.with_adapter(folder)
        found[name] = TransformersBackend(opened.model).generate(
            prompts_ids,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=pad_id,
            progress=_behind(progress, place * len(prompts_ids), len(adapters) * len(prompts_ids)),
        )
    return found


def _behind(progress: Progress | None, already: int, total: int) -> Progress | None:
    """Return what reports progress behind the adapters that have answered."""
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(already + done, total)
