"""The part of vLLM's offline interface that is used, with the names and signatures of vLLM 0.8 to 0.14.

Source: https://docs.vllm.ai/en/v0.14.0/api/vllm/entrypoints/llm/,
https://docs.vllm.ai/en/v0.14.0/api/vllm/config/lora/.
Answers come from transformers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from antidote_llm.evaluation.generation import generate

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] | None = None
    detokenize: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    """One engine; all started engines are recorded."""

    started: list[LLM]

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        seed: int | None = None,
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
        max_model_len: int | None = None,
    ) -> None:
        assert max_lora_rank in MAX_LORA_RANKS
        self.settings = {"enable_lora": enable_lora, "max_lora_rank": max_lora_rank, "max_model_len": max_model_len}
        self.model, self.requests, self.max_loras = model, list[LoRARequest | None](), max_loras
        self.calls = 0
        self.started.append(self)

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: SamplingParams,
        *,
        use_tqdm: bool = True,
        lora_request: list[LoRARequest | None] | LoRARequest | None = None,
    ) -> list[RequestOutput]:
        assert sampling_params.temperature == 0 and not use_tqdm
        requests = lora_request if isinstance(lora_request, list) else [lora_request] * len(prompts)
        assert len(requests) == len(prompts), "vLLM takes one request a prompt"
        assert not any(requests) or self.settings["enable_lora"]
        self.requests += requests
        self.calls += 1
        ends = sampling_params.stop_token_ids or []
        outputs: dict[int, RequestOutput] = {}
        for name in {request and request.lora_name for request in requests}:
            places = [place for place, request in enumerate(requests) if (request and request.lora_name) == name]
            asked = [prompts[place]["prompt_token_ids"] for place in places]
            model = self._with(requests[places[0]])
            answers = generate(model, asked, max_new_tokens=sampling_params.max_tokens, eos_ids=ends)
            for place, ids, answer in zip(places, asked, answers, strict=True):
                # vLLM keeps the token that ended an answer.
                end = ends[:1] if len(answer) < sampling_params.max_tokens else []
                outputs[place] = RequestOutput(ids, [CompletionOutput(0, "", [*answer, *end])])
        return [outputs[place] for place in range(len(prompts))]

    def _with(self, request: LoRARequest | None) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(self.model)
        return model if request is None else PeftModel.from_pretrained(model, request.lora_path)


def install(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Let ``import vllm`` find the stand-in."""
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    LLM.started = []
    for name, value in {"LLM": LLM, "SamplingParams": SamplingParams, "__version__": "0"}.items():
        setattr(vllm, name, value)
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return LLM
