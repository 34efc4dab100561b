"""Edits in blocks of rows are the edits of whole matrices, of stacked and turned ones too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from antidote_llm.calibration.moments import Moments, SiteMoments
from antidote_llm.choices import Scope
from antidote_llm.errors import DefectError
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.sites import Site
from antidote_llm.models.target import Target
from antidote_llm.repairs import edits as planning
from antidote_llm.repairs.edits import Problem, edits_of, plan, plans
from antidote_llm.repairs.method import SiteInputs, method_named, score_method
from antidote_llm.repairs.tally import Tally


def weight_site(name: str, key: str, shape: tuple[int, int], part: int | None = None, turned: bool = False) -> Site:
    module = f"model.layers.{len(name) % 2}.{name}"
    return Site(name, module, "weight", "f", key, shape, 1.0, (nn.Identity(),), transposed=turned, part=part)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def problem(request: pytest.FixtureRequest, tmp_path: Path) -> Problem:
    """Return a flat matrix, two of a stack, one of a stack that is turned, and a turned one, with many ties."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"flat": (7, 10), "stack": (2, 5, 10), "turned": (10, 6), "turned_stack": (3, 10, 4)}
    tensors = {name: torch.randn(shape, generator=generator).round(decimals=1) for name, shape in shapes.items()}
    save_file({name: tensor.to(request.param) for name, tensor in tensors.items()}, tmp_path / "f")
    sites = (
        weight_site("flat", "flat", (7, 10)),
        weight_site("one", "stack", (5, 10), part=0),
        weight_site("other", "stack", (5, 10), part=1),
        weight_site("turned", "turned", (6, 10), turned=True),
        weight_site("third", "turned_stack", (4, 10), part=2, turned=True),
    )
    ones = {site.name: SiteMoments(torch.ones(10).double(), torch.ones(10).double(), 1) for site in sites}
    checkpoint = Checkpoint("f", tmp_path, {}, {"f": open_tensor_file(tmp_path / "f")}, {})
    return Problem(Target("weight", checkpoint, sites, None, (), None), Moments(ones, 1, 1, ""))


def stored(problem: Problem, site: Site) -> Tensor:
    values = problem.target.checkpoint.weights["f"].read(site.key)
    return site.turned(values if site.part is None else values[site.part])


@pytest.mark.parametrize("name", ["antidote", "magnitude", "random", "interpolate"])
@pytest.mark.parametrize("scope", get_args(Scope))
def test_blocks_put_together_are_the_whole(
    problem: Problem, scope: Scope, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_named(name)
    given = {"keep": 0.5} if name == "interpolate" else {"without_evidence": True, "strength": 0.5}
    settings = method.configure({"alpha": 0.3, "scope": scope, **given})
    whole = {site.name: plan(problem, method, settings).edit(site) for site in problem.target.sites}
    wanted = Tally(problem.target.sites)
    for site in problem.target.sites:
        assert torch.equal(whole[site.name].before_OI, stored(problem, site))
        wanted.add(site, whole[site.name])
    monkeypatch.setattr(planning, "_BLOCK_ENTRIES", 20)
    found, tally = plan(problem, method, settings), Tally(problem.target.sites)
    for site in problem.target.sites:
        blocks = list(found.edits(site))
        assert len(blocks) == (-(-site.shape[0] // 2) if method.by_rows and not site.transposed else 1)
        for block in blocks:
            tally.add(site, block)
        edit = whole[site.name]
        assert torch.equal(torch.cat([block.before_OI for block in blocks]), edit.before_OI)
        assert torch.equal(torch.cat([block.after_OI for block in blocks]), edit.after_OI)
        if edit.chosen_OI is not None:
            masks = [block.chosen_OI for block in blocks if block.chosen_OI is not None]
            assert torch.equal(torch.cat(masks), edit.chosen_OI)
    assert tally.sites == wanted.sites
    assert tally.totals.update_norm_after == pytest.approx(wanted.totals.update_norm_after, rel=1e-6)


@pytest.mark.parametrize("scope", get_args(Scope))
def test_plans_together_are_each_alone(problem: Problem, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_BLOCK_ENTRIES", 20)
    method = method_named("antidote")
    settings = [
        method.configure({"alpha": alpha, "scope": scope, "strength": strength})
        for alpha in (0.1, 0.3)
        for strength in (1.0, 0.5)
    ]
    together = plans(problem, method, settings)
    assert [each.settings for each in together] == settings
    for site in problem.target.sites:
        found = zip(*edits_of(site, together), strict=True)
        for given, blocks in zip(settings, found, strict=True):
            wanted = plan(problem, method, given).edit(site)
            assert torch.equal(torch.cat([block.after_OI for block in blocks]), wanted.after_OI)


def test_a_method_that_asks_for_no_blocks_gets_the_whole_matrix(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_BLOCK_ENTRIES", 1)

    def largest(site: SiteInputs) -> Tensor:
        """Score an entry by how it compares with the largest of its column."""
        assert site.weight_OI.shape == site.site.shape
        return site.weight_OI.abs() / site.weight_OI.abs().amax(dim=0).clamp(min=0.1)

    method = score_method(needs_harmful=False)(largest)
    found = plan(problem, method, method.configure({"scope": "global"}))
    assert all(len(list(found.edits(site))) == 1 for site in problem.target.sites)


def test_plans_of_different_problems_are_not_carried_out_together(problem: Problem) -> None:
    method = method_named("magnitude")
    one = plan(problem, method, method.configure({}))
    with pytest.raises(DefectError, match="different things"):
        list(edits_of(problem.target.sites[0], [one, replace(one, problem=replace(problem, moments=None))]))


def test_plans_with_different_scores_are_not_made_together(problem: Problem) -> None:
    method = method_named("antidote")
    with pytest.raises(DefectError, match="different settings of its own"):
        plans(problem, method, [method.configure({"norm_power": power}) for power in (1, 2)])


def test_a_site_that_was_edited_in_part_is_our_defect(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_BLOCK_ENTRIES", 20)
    method, site = method_named("magnitude"), problem.target.sites[0]
    tally = Tally([site])
    with pytest.raises(DefectError, match="flat was not edited"):
        _ = tally.sites
    tally.add(site, next(plan(problem, method, method.configure({})).edits(site)))
    with pytest.raises(DefectError, match="edited in part"):
        _ = tally.sites


@pytest.mark.parametrize("rows", [(0, 6), (3, 2), (-1, 2)])
def test_rows_that_are_not_there_are_our_defect(problem: Problem, rows: tuple[int, int]) -> None:
    file = problem.target.checkpoint.weights["f"]
    with pytest.raises(DefectError, match="has no rows"):
        file.read_rows("stack", *rows, 1)
    with pytest.raises(DefectError, match="part 2"):
        file.read_rows("stack", 0, 1, 2)
