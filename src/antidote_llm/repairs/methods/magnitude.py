"""Magnitude: a control that sees no data; the paper's row of 0 samples (Table 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from antidote_llm.repairs.method import SiteInputs, score_method

if TYPE_CHECKING:
    from torch import Tensor


@score_method(needs_harmful=False, by_rows=True)
def magnitude(site: SiteInputs) -> Tensor:
    """Control: |weight| alone (of a delta: how far it moved), without any data."""
    return site.update_OI.abs()
