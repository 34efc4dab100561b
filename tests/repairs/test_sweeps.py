"""Several alphas in one sweep are each what they are alone, whatever blocks the scores come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from antidote_llm.choices import Rounding, Scope
from antidote_llm.errors import DefectError
from antidote_llm.models.sites import Site
from antidote_llm.repairs.selection import Request, select, select_many
from tests.repairs.test_thresholds import by_one_sort, problems, sites_of

SCOPES = get_args(Scope)


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    scope = draw(st.sampled_from(SCOPES))
    one = st.builds(
        Request,
        alpha=st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
        scope=st.just(scope),
        rounding=st.sampled_from(get_args(Rounding)),
        without_evidence=st.booleans(),
    )
    return draw(st.lists(one, min_size=1, max_size=6))


@settings(deadline=None)
@given(problem=problems(), asked=requests(), rows=st.integers(1, 4))
def test_a_sweep_in_blocks_is_each_request_alone(
    problem: tuple[list[Site], dict[str, Tensor]], asked: list[Request], rows: int
) -> None:
    sites, scores = problem
    swept = select_many(sites, lambda site: torch.split(scores[site.name], rows), asked)
    for request, found in zip(asked, swept, strict=True):
        alone = select(sites, lambda site: [scores[site.name]], request)
        for site in sites:
            mask = found.mask_by_rows(site)
            blocks = [mask.next_rows(block) for block in torch.split(scores[site.name], rows)]
            assert torch.equal(torch.cat(blocks), alone.mask(site, scores[site.name]))


@pytest.mark.parametrize("scope", ["matrix", "layer", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sweep_over_large_matrices(dtype: torch.dtype, scope: Scope) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = sites_of([(i // 2, 40 + i, 50) for i in range(6)])
    scores = {s.name: torch.rand(s.shape, generator=generator, dtype=dtype) * 1000 for s in sites}
    for site in sites[::2]:
        scores[site.name] = scores[site.name].round()
    asked = [Request(alpha / 10, scope, "nearest", True) for alpha in range(1, 10)]
    for request, found in zip(asked, select_many(sites, lambda s: [scores[s.name]], asked), strict=True):
        wanted = by_one_sort(sites, scores, request.scope, request.alpha, request.rounding)
        assert all(torch.equal(found.mask(site, scores[site.name]), wanted[site.name]) for site in sites)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_site_is_scored_as_often_for_many_alphas_as_for_one(scope: Scope) -> None:
    sites = sites_of([(0, 3, 40), (0, 5, 40), (1, 6, 40)])
    generator = torch.Generator().manual_seed(0)
    scores = {s.name: torch.rand(s.shape, generator=generator) for s in sites}
    seen: Counter[str] = Counter()

    def score(site: Site) -> Iterator[Tensor]:
        seen[site.name] += 1
        yield scores[site.name]

    select_many(sites, score, [Request(a / 20, scope, "nearest", False) for a in range(1, 11)])
    assert set(seen.values()) == (set() if scope == "row" else {2})


def test_scopes_are_not_swept_together() -> None:
    asked = [Request(0.1, scope, "nearest", False) for scope in SCOPES]
    with pytest.raises(DefectError, match="different scopes"):
        select_many(sites_of([(0, 1, 2)]), lambda site: [torch.ones(site.shape)], asked)
