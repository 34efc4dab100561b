"""Who generates the answers: transformers in this process, vLLM, or a model that is served already."""

from antidote_llm.evaluation.backends.adapters import generate_with_adapters
from antidote_llm.evaluation.backends.backend import Backend, TransformersBackend
from antidote_llm.evaluation.backends.remembering import Remembering
from antidote_llm.evaluation.backends.vllm import VllmBackend

__all__ = ["Backend", "Remembering", "TransformersBackend", "VllmBackend", "generate_with_adapters"]
