"""What a generation backend is, and the default one: the opened model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from antidote_llm.evaluation.judge import Progress

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from antidote_llm.models.load import LoadedModel


class Backend(Protocol):
    """Answers prompts greedily: token ids in, token ids out."""

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
        """Return the greedy answer to each prompt, in order, without the token that ended it."""
        ...


@dataclass
class TransformersBackend:
    """Generates with the opened model itself."""

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
        from antidote_llm.evaluation.generation import generate

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


_Key: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _CachedAnswer:
    answer: tuple[int, ...]
    limit: int

    def serves(self, max_new_tokens: int) -> bool:
        """Return whether this answer, cut, is the answer of another length: it ended by itself, or is long enough."""
        return len(self.answer) < self.limit or max_new_tokens <= self.limit


class CachingBackend:
    """A backend that caches the answers of another one, and cuts shorter answers from longer ones."""

    def __init__(self, inner: Backend) -> None:
        self.name = inner.name
        self._inner = inner
        self._answers: dict[_Key, _CachedAnswer] = {}

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
        keys: list[_Key] = [(tuple(ids), tuple(eos_ids)) for ids in prompts_ids]
        new = [place for place, key in enumerate(keys) if not self._serves(key, max_new_tokens)]
        total, cached = len(keys), len(keys) - len(new)
        if progress is not None and cached:
            progress(cached, total)
        found = self._inner.generate(
            [prompts_ids[place] for place in new],
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=pad_id,
            progress=offset(progress, cached, total),
        )
        for place, answer in zip(new, found, strict=True):
            self._answers[keys[place]] = _CachedAnswer(tuple(answer), max_new_tokens)
        return [list(self._answers[key].answer[:max_new_tokens]) for key in keys]

    def _serves(self, key: _Key, max_new_tokens: int) -> bool:
        known = self._answers.get(key)
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

    Adapters are swapped in the memory of the opened model: peft would compute the adapters of a mixed batch one by one.
    Each adapter's answers are the same, to the bit, as when it is loaded alone. For vLLM:
    :meth:`~antidote_llm.evaluation.vllm_backend.VllmBackend.generate_with_adapters`.

    Args:
        opened: A model with or without an adapter. It must not be used afterwards.
        adapters: The folder of each adapter by any name, None for the model without one.
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
            progress=offset(progress, place * len(prompts_ids), len(adapters) * len(prompts_ids)),
        )
    return found


def offset(progress: Progress | None, already: int, total: int) -> Progress | None:
    """Return a callback that adds what was done before to the progress of one part of the work."""
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(already + done, total)
