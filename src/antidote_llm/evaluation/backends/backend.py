"""What a generation backend is, and the one that needs nothing but the opened model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from peft import PeftModel
from transformers import PreTrainedModel

from antidote_llm.evaluation.generation import Progress, generate
from antidote_llm.models.load import LoadedModel


class Backend(Protocol):
    """Answers prompts greedily, tokens in and tokens out.

    Attributes:
        name: What it is called on the command line.
    """

    name: str

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        pad_id: int,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return the greedy answer to each prompt, in order, without the token that ended it.

        Args:
            prompts_ids: Token ids of each prompt.
            max_new_tokens: Most tokens of an answer.
            eos_ids: Tokens that end an answer.
            pad_id: Any token id, for those that pad.
            progress: Called with the number of prompts answered and their total.
        """
        ...


@dataclass
class TransformersBackend:
    """The opened model itself.

    Attributes:
        model: Any causal language model of transformers, or one with an adapter.
        batch_size: Most prompts answered at once.
        batch_tokens: Most tokens held at once.
    """

    model: PreTrainedModel | PeftModel
    batch_size: int = 64
    batch_tokens: int = 16_384
    name: str = "transformers"

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        pad_id: int,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return the greedy answer to each prompt."""
        return generate(
            self.model,
            prompts_ids,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=pad_id,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )


_Asked: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Known:
    answer: tuple[int, ...]
    limit: int

    def serves(self, max_new_tokens: int) -> bool:
        """Say whether an answer of another length can be told from this one: it ended, or is long enough."""
        return len(self.answer) < self.limit or max_new_tokens <= self.limit


class Remembering:
    """A backend that remembers its answers, and cuts shorter ones from them.

    Args:
        inner: Answers what is not known yet.
    """

    def __init__(self, inner: Backend) -> None:
        self.name = inner.name
        self._inner = inner
        self._known: dict[_Asked, _Known] = {}

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        pad_id: int,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return the greedy answer to each prompt."""
        asked: list[_Asked] = [(tuple(ids), tuple(eos_ids)) for ids in prompts_ids]
        new = [place for place, key in enumerate(asked) if not self._serves(key, max_new_tokens)]
        total, before = len(asked), len(asked) - len(new)
        if progress is not None and before:
            progress(before, total)
        found = self._inner.generate(
            [prompts_ids[place] for place in new],
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=pad_id,
            progress=None if progress is None else lambda done, _: progress(before + done, total),
        )
        for place, answer in zip(new, found, strict=True):
            self._known[asked[place]] = _Known(tuple(answer), max_new_tokens)
        return [list(self._known[key].answer[:max_new_tokens]) for key in asked]

    def _serves(self, key: _Asked, max_new_tokens: int) -> bool:
        known = self._known.get(key)
        return known is not None and known.serves(max_new_tokens)


def generate_with_adapters(
    opened: LoadedModel,
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
