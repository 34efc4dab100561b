"""Ranked together, matrices are cut where one stable sort over all of them would cut."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from antidote_llm.choices import Rounding, Scope
from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.sites import Site
from antidote_llm.repairs.selection import Request, count, select

# Ties, both zeros, subnormals, neighbours in the last bit, and the ends of the range.
TINY = {torch.float32: 1.4e-45, torch.float64: 5e-324}
VALUES = (0.0, -0.0, 1.0, 1.0 + 2**-23, 1.0 - 2**-24, 2.0, 0.5, 3e-39, 65504.0, 3e38, 1e-30, float("inf"))
RANKED_WHOLE: tuple[Scope, ...] = ("matrix", "layer", "global")


def sites_of(shapes: list[tuple[int, int, int]]) -> list[Site]:
    return [
        Site(f"s{i}", f"model.layers.{layer}.m{i}", "weight", "f", f"k{i}", (rows, columns), 1.0, (nn.Identity(),))
        for i, (layer, rows, columns) in enumerate(shapes)
    ]


def by_one_sort(
    sites: list[Site], scores: dict[str, Tensor], scope: Scope, alpha: float, rounding: Rounding
) -> dict[str, Tensor]:
    """Pick the end of a stable ascending sort over the concatenation of every group."""
    masks: dict[str, Tensor] = {}
    groups: dict[object, list[Site]] = {}
    for site in sites:
        groups.setdefault({"matrix": site.name, "layer": site.layer, "global": None}[scope], []).append(site)
    for members in groups.values():
        together = torch.cat([scores[site.name].flatten() for site in members])
        k = count(len(together), alpha, rounding)
        picked = torch.zeros(len(together), dtype=torch.bool)
        picked[together.sort(stable=True).indices[len(together) - k :]] = True
        parts = torch.split(picked, [scores[site.name].numel() for site in members])
        masks |= {site.name: part.reshape(site.shape) for site, part in zip(members, parts, strict=True)}
    return masks


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Site], dict[str, Tensor]]:
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    side = st.integers(1, 4)
    sites = sites_of(draw(st.lists(st.tuples(st.integers(0, 1), side, side), min_size=1, max_size=4)))
    value = st.sampled_from((*VALUES, TINY[dtype], 3 * TINY[dtype])) | st.floats(0, 10, width=32)
    scores = {}
    for site in sites:
        entries = site.shape[0] * site.shape[1]
        drawn = draw(st.lists(value, min_size=entries, max_size=entries))
        scores[site.name] = torch.tensor(drawn, dtype=dtype).reshape(site.shape)
    return sites, scores


@settings(deadline=None)
@given(
    problem=problems(),
    scope=st.sampled_from(RANKED_WHOLE),
    alpha=st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    rounding=st.sampled_from(get_args(Rounding)),
)
def test_thresholds_are_those_of_a_stable_sort(
    problem: tuple[list[Site], dict[str, Tensor]], scope: Scope, alpha: float, rounding: Rounding
) -> None:
    sites, scores = problem
    found = select(sites, lambda s: [scores[s.name]], Request(alpha, scope, rounding, without_evidence=True))
    wanted = by_one_sort(sites, scores, scope, alpha, rounding)
    for site in sites:
        assert torch.equal(found.mask(site, scores[site.name]), wanted[site.name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", RANKED_WHOLE)
def test_thresholds_of_large_matrices(scope: Scope, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = sites_of([(i // 2, 50 + i, 60) for i in range(6)])
    scores = {
        site.name: (torch.rand(site.shape, generator=generator, dtype=dtype) * 1000).round(decimals=1) for site in sites
    }
    for alpha in (0.001, 0.2, 0.999):
        found = select(sites, lambda s: [scores[s.name]], Request(alpha, scope, "nearest", without_evidence=True))
        wanted = by_one_sort(sites, scores, scope, alpha, "nearest")
        assert all(torch.equal(found.mask(site, scores[site.name]), wanted[site.name]) for site in sites)


@pytest.mark.parametrize("scope", get_args(Scope))
@pytest.mark.parametrize("alpha", [0.0, 0.07, 0.5, 1.0])
def test_the_bound_of_bytes_is_what_the_masks_take(scope: Scope, alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = sites_of([(0, 3, 7), (0, 5, 4), (1, 1, 1), (1, 6, 9)])
    scores = {site.name: torch.rand(site.shape, generator=generator) + 0.1 for site in sites}
    found = select(sites, lambda s: [scores[s.name]], Request(alpha, scope, "nearest", without_evidence=False))
    counts = {site.name: int(found.mask(site, scores[site.name]).sum()) for site in sites}
    assert found.most_bytes(sites, dict.fromkeys(counts, 2)) == 2 * sum(counts.values())
    mixed = {site.name: 2 if index % 2 else 4 for index, site in enumerate(sites)}
    taken = sum(counts[name] * mixed[name] for name in counts)
    if scope in ("row", "matrix"):
        assert found.most_bytes(sites, mixed) == taken
    else:
        assert found.most_bytes(sites, mixed) >= taken


def test_scores_that_cannot_be_ranked_together_are_our_defect() -> None:
    sites = sites_of([(0, 1, 2), (0, 1, 2)])
    given_: dict[str, Tensor] = {"s0": torch.ones(1, 2), "s1": torch.ones(1, 2).double()}
    together = Request(0.5, "global", "nearest", without_evidence=True)
    with pytest.raises(DefectError, match="s1: scored in"):
        select(sites, lambda s: [given_[s.name]], together)
    for wrong in (-torch.ones(1, 2), torch.ones(2, 1), torch.ones(2, 2)):
        with pytest.raises(DefectError, match="non-negative and of the matrix's shape"):
            select(sites[:1], lambda _, wrong=wrong: [wrong], together)  # type: ignore[misc]
    found = select(sites, lambda _: [torch.ones(1, 2)], Request(0.5, "row", "nearest", without_evidence=True))
    with pytest.raises(UserError, match="s0: a score is NaN"):
        found.mask(sites[0], torch.full((1, 2), float("nan")))
