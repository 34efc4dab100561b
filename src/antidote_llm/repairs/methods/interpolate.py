"""Interpolate: a control that shrinks the whole update evenly, back towards the aligned model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from antidote_llm.errors import DefectError
from antidote_llm.repairs.method import MatchedKnob, SiteInputs, solve_method

if TYPE_CHECKING:
    from torch import Tensor


@solve_method(
    needs_harmful=False,
    matched=MatchedKnob("keep", unchanged=1.0, removed=0.0, wanted=lambda settings: settings.keep is None),
)
def interpolate(
    site: SiteInputs,
    *,
    keep: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Fraction of the update that stays; by default what leaves Antidote's norm at the same alpha.",
        ),
    ] = None,
) -> Tensor:
    """Control: go evenly back towards the aligned model, at equal update norm by default."""
    if keep is None:
        raise DefectError("the fraction to keep was not solved for")
    if keep == 1 or site.site.role == "lora_A":
        # The update is s B A: scaling one factor scales it.
        return site.weight_OI
    if site.reference_OI is None:
        return site.weight_OI * keep
    if keep == 0:
        return site.reference_OI
    # Adding the reference and 0 would lose the sign of a minus zero.
    return site.weight_OI.where(site.update_OI == 0, site.reference_OI + site.update_OI * keep)
