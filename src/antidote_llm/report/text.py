"""Cuts text to what the page has room for."""

from __future__ import annotations

from antidote_llm.artifacts.visible_text import cut_middle, visible


def clip_name(name: str, limit: int = 80) -> str:
    """Return a name that is safe to look at, its middle cut where it is longer than ``limit`` characters."""
    return cut_middle(visible(name), limit)


def clip(text: str, limit: int) -> tuple[str, int]:
    """Return the first ``limit`` characters and how many were left out."""
    return text[:limit], max(0, len(text) - limit)
