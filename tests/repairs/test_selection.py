"""Counts are exact, ties fall as a stable sort lets them fall, and nothing is chosen without evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from antidote_llm.choices import Scope
from antidote_llm.errors import UserError
from antidote_llm.models.sites import Site
from antidote_llm.repairs.selection import Request, _by_partition, _by_topk, count, select, top_entries

SCOPES = get_args(Scope)


def site(name: str, layer: int, rows: int, columns: int) -> Site:
    module = f"model.layers.{layer}.{name}"
    return Site(f"{module}.lora_A", module, "lora_A", "f", name, (rows, columns), 1.0, (nn.Identity(),))


def masks_of(sites: list[Site], scores: Mapping[str, Tensor], **given: Any) -> dict[str, Tensor]:
    found = select(sites, lambda site: [scores[site.name]], Request(**given))
    return {site.name: found.mask(site, scores[site.name]) for site in sites}


def by_sorting(scores: Tensor, k: int) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    order = scores.sort(dim=1, stable=True).indices
    return mask.scatter_(1, order[:, order.shape[1] - k :], True)


@settings(deadline=None)
@given(
    values=st.lists(st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=1, max_size=6), k=st.integers(0, 7)
)
def test_top_entries_are_the_end_of_a_stable_sort(values: list[list[int]], k: int) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(top_entries(scores, k), by_sorting(scores, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 40, 200, 399])
def test_top_entries_of_wide_rows(k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(30, 400, generator=generator, dtype=dtype)
    scores[10:20] = (scores[10:20] * 20).round()
    scores[20:] = (scores[20:] - 0.9).clamp(min=0)
    scores[0, :5] = torch.tensor([float("inf"), -0.0, 0.0, 1e-45, 3e38])
    assert torch.equal(top_entries(scores, k), by_sorting(scores, k))


@pytest.mark.parametrize("k", [1, 7, 50])
def test_every_device_finds_the_same_threshold(k: int) -> None:
    scores = torch.rand(20, 50, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    assert torch.equal(_by_partition(scores, k), _by_topk(scores, k))


@settings(deadline=None)
@given(entries=st.integers(1, 5000), alpha=st.floats(0, 1))
def test_counts(entries: int, alpha: float) -> None:
    assert abs(count(entries, alpha, "nearest") - alpha * entries) <= 0.5 + 1e-9
    assert count(entries, alpha, "official") == entries - int(entries * (1 - alpha))


@pytest.mark.parametrize("scope", SCOPES)
def test_every_group_of_a_scope_loses_exactly_its_count(scope: Scope) -> None:
    sites = [site("q", 0, 4, 10), site("k", 0, 4, 10), site("q", 1, 6, 10), site("k", 1, 6, 10)]
    generator = torch.Generator().manual_seed(0)
    scores = {s.name: torch.rand(s.shape, generator=generator) + 0.1 for s in sites}
    masks = masks_of(sites, scores, alpha=0.23, scope=scope, rounding="nearest", without_evidence=False)
    if scope == "row":
        assert all((mask.sum(dim=1) == 2).all() for mask in masks.values())
    elif scope == "matrix":
        assert [int(mask.sum()) for mask in masks.values()] == [9, 9, 14, 14]
    elif scope == "layer":
        sums = [int(mask.sum()) for mask in masks.values()]
        assert (sums[0] + sums[1], sums[2] + sums[3]) == (18, 28)
    else:
        assert sum(int(mask.sum()) for mask in masks.values()) == 46
        chosen = torch.cat([scores[name][mask] for name, mask in masks.items()])
        assert chosen.min() >= torch.cat([scores[name][~mask] for name, mask in masks.items()]).max()


def test_ties_across_matrices_fall_to_the_later_one() -> None:
    sites = [site("q", 0, 2, 2), site("k", 0, 2, 2)]
    scores = {s.name: torch.ones(2, 2) for s in sites}
    masks = masks_of(sites, scores, alpha=0.5, scope="global", rounding="nearest", without_evidence=False)
    assert [int(mask.sum()) for mask in masks.values()] == [0, 4]


@pytest.mark.parametrize("scope", SCOPES)
def test_entries_without_evidence_stay_unless_asked_for(scope: Scope) -> None:
    sites = [site("q", 0, 3, 8)]
    scores = {sites[0].name: torch.zeros(3, 8)}

    def chosen(alpha: float, without_evidence: bool) -> int:
        masks = masks_of(sites, scores, alpha=alpha, scope=scope, rounding="nearest", without_evidence=without_evidence)
        return int(masks[sites[0].name].sum())

    assert (chosen(0.5, False), chosen(0.5, True), chosen(1.0, False)) == (0, 12, 24)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_nan_score_is_named(scope: Scope) -> None:
    sites = [site("q", 0, 1, 2)]
    with pytest.raises(UserError, match=r"layers\.0\.q"):
        masks_of(
            sites,
            {sites[0].name: torch.tensor([[1.0, float("nan")]])},
            alpha=0.5,
            scope=scope,
            rounding="nearest",
            without_evidence=True,
        )
