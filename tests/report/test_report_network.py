"""The map of the network: the position of a site, its colour, and the sums."""

from __future__ import annotations

import pytest

from antidote_llm.report.data import SiteChange
from antidote_llm.report.network import network

from . import samples


def site(layer: int | None, kind: str, changed: int, before: float = 2.0, after: float = 1.0) -> SiteChange:
    return SiteChange(
        module=f"m.{layer}.{kind}", layer=layer, kind=kind, entries=100, changed=changed,
        norm_before=before, norm_after=after,
    )  # fmt: skip


def test_a_cell_is_at_its_layer_and_kind() -> None:
    found = network([site(3, "q", 0), site(7, "q", 40), site(7, "v", 20), site(None, "head", 5)])
    assert found.columns == ("3", "7")
    share, norm = found.maps
    assert [(row.kind, [(cell.column, cell.step) for cell in row.cells]) for row in share.rows] == [
        ("q", [(0, "s0"), (1, "s8")]),
        ("v", [(1, "s5")]),
    ]
    assert share.legend == ("0", "20", "40") and norm.legend == ("100", "75", "50")
    assert [name for name, _ in found.outside] == ["m.None.head"]
    assert (found.total.sites, found.total.changed) == (4, 65)


def test_norms_add_up_as_squares() -> None:
    total = network([site(0, "q", 1, 3, 3), site(0, "k", 1, 4, 0)]).total
    assert total.norm_before == pytest.approx(5) and total.kept == pytest.approx(60)


def test_a_norm_that_grew_and_one_that_was_zero_are_marked() -> None:
    norm = network([site(0, "q", 1, 1, 2), site(1, "q", 1, 0, 0), site(2, "q", 1, 1, 1)]).maps[1]
    assert [cell.step for cell in norm.rows[0].cells] == ["g", "n", "s0"]
    assert norm.grew


@pytest.mark.parametrize("layers", [1, 7, 12, 32, 80, 126, 500])
def test_layer_labels_are_sparse(layers: int) -> None:
    labels = network(samples.sites(layers, ("q_proj",))).labels
    assert labels[0][1] == 0 and len(labels) <= 8
    assert all(0 < place < 100 for place, _ in labels)


def test_a_rare_change_is_not_shown_as_zero() -> None:
    rare = SiteChange(module="m", layer=0, kind="q", entries=10_000_000, changed=3, norm_before=1, norm_after=1)
    assert network([rare]).total.share_text == "0.000030"


def test_without_an_update_there_is_no_map_of_its_norm() -> None:
    assert [found.name for found in network([site(0, "q", 1, 0, 0)]).maps] == ["share"]
    assert network([site(None, "head", 1)]).maps == ()
