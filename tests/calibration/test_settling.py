"""The rule that stops collecting statistics: its bound holds, it stops where it may, and it says so where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from antidote_llm.choices import Scope
from antidote_llm.errors import DefectError
from antidote_llm.models.sites import Site
from antidote_llm.repairs.early_stopping import Agreement, StoppingRule, sampled_rows
from antidote_llm.repairs.method import ColumnScore
from antidote_llm.repairs.selection import Request

ROWS, COLUMNS = 1000, 48
SHAPES = ((40, COLUMNS), (24, COLUMNS), (32, COLUMNS))


def made_sites() -> list[Site]:
    return [
        Site(f"model.layers.{index}.proj", f"model.layers.{index}.proj", "weight", "f", "k", shape, 1.0, ())
        for index, shape in enumerate(SHAPES)
    ]


def made_updates(seed: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {site.name: torch.randn(*site.shape, generator=chance) for site in made_sites()}


def made_sums(spread: float, seed: int) -> dict[str, Tensor]:
    """Per-row sums of squares: columns that vary on their own and, as with row lengths, all together."""
    chance = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance)

    together_N1 = normal(ROWS, 1)
    return {
        site.name: (spread * (normal(ROWS, COLUMNS) + together_N1) + normal(COLUMNS)).exp() for site in made_sites()
    }


def run(rule: StoppingRule, sums: dict[str, Tensor], part: int = 1000) -> tuple[Agreement, list[int]]:
    seen: list[int] = []
    while True:
        rows = rule.next_rows()
        for start in range(0, len(rows), part):
            for name, sums_NI in sums.items():
                rule.add([name], rows[start : start + part], sums_NI[rows[start : start + part]])
        seen += rows
        found = rule.look()
        if found.settled:
            return found, seen


def a_rule(
    updates: dict[str, Tensor], scope: Scope, *, alpha: float = 0.2, rows: int = ROWS, **options: Any
) -> StoppingRule:
    request = Request(alpha, scope, "nearest", without_evidence=False)
    return StoppingRule(
        made_sites(), lambda site: updates[site.name], request, ColumnScore("rms"), rows=rows, **options
    )


def mask(sums: dict[str, Tensor], updates: dict[str, Tensor], rows: list[int], scope: Scope) -> Tensor:
    scores = [updates[name].abs() * sums_NI[rows].mean(dim=0).sqrt() for name, sums_NI in sums.items()]
    if scope == "row":
        found = [score >= score.topk(round(0.2 * COLUMNS), dim=1).values[:, -1:] for score in scores]
    elif scope == "global":
        flat = torch.cat([score.flatten() for score in scores])
        found = [flat >= flat.topk(round(0.2 * len(flat))).values[-1]]
    else:
        found = [score >= score.flatten().topk(round(0.2 * score.numel())).values[-1] for score in scores]
    return torch.cat([each.flatten() for each in found])


def jaccard(one: Tensor, other: Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("scope", ["row", "matrix", "layer", "global"])
def test_the_bound_holds_in_95_of_100_draws_and_no_row_too_many_is_seen(scope: Scope) -> None:
    updates, sums = made_updates(1), made_sums(0.5, 2)
    whole = mask(sums, updates, list(range(ROWS)), scope)
    true, estimates, seen = 0, [], []
    for seed in range(100):
        rule = a_rule(updates, scope, seed=seed)
        found, rows = run(rule, sums)
        agreement = jaccard(mask(sums, updates, rows, scope), whole)
        true += agreement >= found.bound
        estimates.append(found.estimate - agreement)
        seen.append(found.rows)
    assert true >= 95
    assert abs(sum(estimates) / 100) < 0.01
    assert sum(seen) / 100 < 0.35 * ROWS


def test_a_data_set_that_never_settles_is_seen_whole_and_said_to_be() -> None:
    updates, sums = made_updates(1), made_sums(3.0, 2)
    rule = a_rule(updates, "row", target=0.999)
    found, rows = run(rule, sums)
    assert (found.rows, found.of_rows, found.bound, found.estimate) == (ROWS, ROWS, 1.0, 1.0)
    assert sorted(rows) == list(range(ROWS))


def test_rows_that_are_all_alike_settle_at_the_first_look() -> None:
    updates = made_updates(1)
    sums = {name: sums_NI[:1].expand(ROWS, -1) for name, sums_NI in made_sums(0.5, 2).items()}
    found, _ = run(a_rule(updates, "global"), sums)
    assert found.looks == 1
    assert found.bound == pytest.approx(1, abs=1e-3)


def test_fewer_rows_than_a_first_look_are_all_seen() -> None:
    updates, sums = made_updates(1), made_sums(0.5, 2)
    found, rows = run(a_rule(updates, "row", rows=7), sums)
    assert (found.rows, found.bound, sorted(rows)) == (7, 1.0, list(range(7)))


def test_the_same_seed_stops_at_the_same_row_however_the_rows_come_in_parts() -> None:
    updates, sums = made_updates(1), made_sums(0.5, 2)

    def found(seed: int, part: int) -> tuple[Agreement, list[int]]:
        return run(a_rule(updates, "row", seed=seed), sums, part)

    (once, rows), (again, rows_again), (_, other_rows) = found(3, 1000), found(3, 7), found(4, 1000)
    assert rows == rows_again != other_rows
    assert once.bound == pytest.approx(again.bound, abs=1e-3)


def test_nothing_picked_cannot_move() -> None:
    updates, sums = made_updates(1), made_sums(3.0, 2)
    for scope in ("row", "global"):
        for alpha in (0.0, 1.0):
            rule = a_rule(updates, scope, alpha=alpha)
            assert run(rule, sums)[0].looks == 1


def test_a_site_that_lacks_rows_is_our_defect() -> None:
    updates, sums = made_updates(1), made_sums(0.5, 2)
    rule = a_rule(updates, "row")
    rows = rule.next_rows()
    for name in list(sums)[:-1]:
        rule.add([name], rows, sums[name][rows])
    with pytest.raises(DefectError, match=r"model\.layers\.2\.proj was given 0 of 32 rows"):
        rule.look()


def test_fewer_entries_are_read_from_all_matrices_alike() -> None:
    updates = made_updates(1)
    total = sum(rows * columns for rows, columns in SHAPES)
    found, share = sampled_rows(made_sites(), lambda site: updates[site.name], total // 4, 0.5)
    assert share == pytest.approx(0.25, abs=0.01)
    assert [len(each.update_RI) for each in found] == [10, 6, 8]
    everything, share = sampled_rows(made_sites(), lambda site: updates[site.name], total, 0.9)
    assert share == 1
    assert all(torch.equal(each.update_RI, updates[each.site.name].abs()) for each in everything)


@pytest.mark.parametrize("scope", ["row", "global"])
def test_a_sample_of_entries_bounds_lower_but_bounds(scope: Scope) -> None:
    updates, sums = made_updates(1), made_sums(0.5, 2)
    whole = mask(sums, updates, list(range(ROWS)), scope)
    true = 0
    for seed in range(40):
        rule = a_rule(updates, scope, seed=seed, entries=2500)
        found, rows = run(rule, sums)
        true += jaccard(mask(sums, updates, rows, scope), whole) >= found.bound
    assert true >= 37


def test_a_single_row_is_all_there_is() -> None:
    rule = a_rule(made_updates(1), "row", rows=1)
    found, seen = run(rule, {name: sums[:1] for name, sums in made_sums(0.3, 1).items()})
    assert (found.settled, found.bound, seen) == (True, 1.0, [0])
