"""Records, prompt templates, files, mixes and splits."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Scripts of version 0.1.0 import it from here; its place now is the package itself.
    if name != "read_records":
        raise AttributeError(f"module 'antidote_llm.data' has no attribute '{name}'")
    from antidote_llm.data.reading import read_records

    return read_records
