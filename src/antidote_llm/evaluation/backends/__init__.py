"""Who generates the answers: transformers in this process, vLLM, or a model that is served already."""
