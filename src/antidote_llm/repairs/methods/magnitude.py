"""Magnitude: a control that sees no data; the paper's row of 0 samples (Table 13)."""

from __future__ import annotations

from torch import Tensor

from antidote_llm.repairs.method import SiteInputs, score_method


@score_method(needs_harmful=False, by_rows=True)
def magnitude(site: SiteInputs) -> Tensor:
    """Control: |weight| alone (of a delta: how far it moved), without any data."""
    return site.update_OI.abs()
