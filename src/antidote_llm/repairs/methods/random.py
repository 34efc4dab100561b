"""Random: a control that removes a random sample of entries, of the count or the update norm of Antidote's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from antidote_llm.io.files import sha256_bytes
from antidote_llm.repairs.method import MatchedKnob, SiteInputs, score_method

if TYPE_CHECKING:
    from torch import Tensor


@score_method(
    needs_harmful=False,
    matched=MatchedKnob("alpha", unchanged=0.0, removed=1.0, wanted=lambda settings: settings.match == "update-norm"),
)
def random(
    site: SiteInputs,
    *,
    seed: Annotated[int, Field(ge=0, description="Seed of the draw.")] = 0,
    match: Annotated[
        Literal["count", "update-norm"],
        Field(description="What is equal to Antidote at the same alpha: the count of entries, or the update's norm."),
    ] = "count",
) -> Tensor:
    """Control: random entries, of equal count or equal update norm."""
    import torch

    del match  # Read by the planner, which solves for alpha.
    # One stream a site, so that a site's draw does not depend on which others there are.
    stream = int(sha256_bytes(f"{seed}/{site.site.name}".encode())[:15], 16)
    generator = torch.Generator().manual_seed(stream)
    draw_OI = 1 - torch.rand(site.weight_OI.shape, generator=generator, dtype=torch.float64)
    # An entry that did not move cannot be removed: drawing it would make the count unequal.
    return draw_OI * (site.update_OI != 0)
