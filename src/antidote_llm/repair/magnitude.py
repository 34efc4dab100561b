"""Magnitude: a control that sees no data; the paper's row of 0 samples (Table 13)."""

from __future__ import annotations

from torch import Tensor

from antidote_llm.repair.method import SiteInputs, score_method


@score_method(needs_harmful=False)
def magnitude(site: SiteInputs) -> Tensor:
    """Control: |weight| alone, without any data."""
    return site.weight_OI.abs()
