"""Antidote: remove the entries that matter most on harmful data (arXiv 2408.09600, Eqs. 1 to 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from antidote_llm.choices import Statistic
from antidote_llm.repairs.method import ColumnScore, SiteInputs, score_method

if TYPE_CHECKING:
    from torch import Tensor


@score_method(
    needs_harmful=True,
    by_rows=True,
    column_score=lambda settings: ColumnScore(settings.statistic, settings.norm_power),
    presets={
        "paper": {"alpha": 0.1, "statistic": "mean_norm"},
        "official-code": {"alpha": 0.1, "statistic": "rms", "rounding": "official", "without_evidence": True},
    },
)
def antidote(
    site: SiteInputs,
    *,
    statistic: Annotated[
        Statistic,
        Field(description="How an input's norm is taken over rows: rms as the published code, mean_norm as the paper."),
    ] = "rms",
    norm_power: Annotated[
        int, Field(ge=1, le=2, description="Power of the norm: 1 as in Wanda, 2 as one summary of the paper prints it.")
    ] = 1,
) -> Tensor:
    """Wanda score on harmful data: |weight| (of a delta: how far it moved) times the norm of its input."""
    norm_I = site.harmful.input_norm(site.site.name, statistic).to(site.weight_OI.dtype)
    return site.update_OI.abs() * norm_I**norm_power
