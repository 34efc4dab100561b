"""Generation with vLLM: one engine for the base model, with adapters swapped between requests or mixed in a batch.

An optional extra (``pip install 'antidote-llm[vllm]'``), imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.judge import Progress

INSTALL_HINT = f"vLLM is not installed: pip install 'antidote-llm[vllm]', or leave {setting('backend')} vllm out"
# The ranks that vLLM allocates (its MaxLoRARanks); a rank in between takes the next one.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_REQUESTS_AT_ONCE = 256


class VllmBackend:
    """Answers greedily with a vLLM engine, which the first request starts.

    Args:
        base: Folder of the whole model.
        tokenizer: Folder of its tokenizer, which the engine opens but does not use: prompts are token ids.
        adapter: Folder of the LoRA adapter that answers, None for the base alone.
        max_rank: The largest rank of any adapter; 0 for none.
        max_adapters: Most adapters that answer in one batch.
        dtype: The type of the weights, such as ``bfloat16``.
        max_tokens: Most tokens of a prompt and its answer; None for the model's own limit.
        trust_remote_code: Whether to run Python code that comes with the checkpoint.

    Raises:
        UserError: vLLM is not installed, or has no room for adapters of that rank.
    """

    name = "vllm"

    def __init__(
        self,
        base: Path,
        *,
        tokenizer: Path | str | None = None,
        adapter: Path | None = None,
        max_rank: int = 0,
        max_adapters: int = 1,
        dtype: str = "auto",
        max_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        require_vllm()
        settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code, "seed": 0}
        if tokenizer is not None:
            settings["tokenizer"] = str(tokenizer)
        if max_tokens is not None:
            settings["max_model_len"] = max_tokens
        if max_rank:
            settings |= {"enable_lora": True, "max_loras": max_adapters, "max_lora_rank": _room_for(max_rank)}
        self._base, self._settings = base, settings
        self._takes_adapters = bool(max_rank)
        self._numbers: dict[Path, int] = {}
        self._adapter: Path | None = None
        self.use(adapter)

    def use(self, adapter: Path | None) -> None:
        """Answer with another adapter from now on, or with the base alone. A folder is read once.

        Raises:
            UserError: The engine was started without room for adapters.
        """
        if adapter is not None and not self._takes_adapters:
            raise UserError(f"{adapter}: the vLLM engine was started without adapters: name its rank as max_rank")
        self._adapter = adapter
        if adapter is not None:
            # vLLM identifies adapters, and its prefix cache of each, by name and number, from 1 on.
            self._numbers.setdefault(adapter, len(self._numbers) + 1)

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        pad_id: int,  # noqa: ARG002 - vLLM does not pad
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return the greedy answer to each prompt."""
        answering = [self._adapter] * len(prompts_ids)
        return self._answers(prompts_ids, answering, max_new_tokens, eos_ids, progress)

    def generate_with_adapters(
        self,
        adapters: Mapping[str, Path | None],
        prompts_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        pad_id: int,  # noqa: ARG002 - vLLM does not pad
        progress: Progress | None = None,
    ) -> dict[str, list[list[int]]]:
        """Return the greedy answers to all prompts under every adapter; requests of all of them share batches.

        The adapter that :meth:`generate` uses does not change.

        Args:
            adapters: The folder of each adapter by any name, None for the base alone.
            prompts_ids: Token ids of each prompt.
            max_new_tokens: Most tokens of an answer.
            eos_ids: Tokens that end an answer.
            pad_id: Not used.
            progress: Called with the number of prompts answered, under all adapters together, and their total.

        Raises:
            UserError: The engine was started without room for adapters.
        """
        before = self._adapter
        try:
            for folder in adapters.values():
                self.use(folder)
        finally:
            self._adapter = before
        # Ordered by prompt, so that every batch holds all adapters.
        asked = [ids for ids in prompts_ids for _ in adapters]
        answering = [folder for _ in prompts_ids for folder in adapters.values()]
        answers = self._answers(asked, answering, max_new_tokens, eos_ids, progress)
        return {name: answers[place :: len(adapters)] for place, name in enumerate(adapters)}

    def _answers(
        self,
        prompts_ids: Sequence[Sequence[int]],
        adapters: Sequence[Path | None],
        max_new_tokens: int,
        eos_ids: Sequence[int],
        progress: Progress | None,
    ) -> list[list[int]]:
        how = _vllm().SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=list(eos_ids), detokenize=False
        )
        answers: list[list[int]] = []
        for start in range(0, len(prompts_ids), _REQUESTS_AT_ONCE):
            asked = [{"prompt_token_ids": list(ids)} for ids in prompts_ids[start : start + _REQUESTS_AT_ONCE]]
            requests = [self._request(adapter) for adapter in adapters[start : start + _REQUESTS_AT_ONCE]]
            found = self._engine.generate(asked, how, use_tqdm=False, lora_request=requests)
            answers += [_until_end(output.outputs[0].token_ids, eos_ids) for output in found]
            if progress is not None:
                progress(len(answers), len(prompts_ids))
        return answers

    @cached_property
    def _engine(self) -> Any:
        return _vllm().LLM(model=str(self._base), **self._settings)

    def _request(self, adapter: Path | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]

        number = self._numbers[adapter]
        return LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=str(adapter))


def _vllm() -> Any:
    try:
        import vllm  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError(INSTALL_HINT) from error
    return vllm


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        UserError: It is not.
    """
    _vllm()


def _room_for(rank: int) -> int:
    room = next((room for room in _RANKS if room >= rank), None)
    if room is None:
        raise UserError(
            f"vLLM has no room for adapters of rank {rank}, more than {_RANKS[-1]}: leave {setting('backend')} vllm out"
        )
    return room


def _until_end(token_ids: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """Return an answer up to the token that ended it, which vLLM keeps."""
    ids = list(token_ids)
    return ids[: next((place for place, token in enumerate(ids) if token in eos_ids), len(ids))]
