"""The effect by category of harm, the worst that is left first."""

from __future__ import annotations

from collections.abc import Sequence

from antidote_llm.report.data import CategoryEffect


def worst_first(categories: Sequence[CategoryEffect]) -> list[CategoryEffect]:
    """Sort by what is left after the repair, then by what was there before, then by name."""
    return sorted(categories, key=lambda effect: (-effect.after.value, -effect.before.value, effect.category))
