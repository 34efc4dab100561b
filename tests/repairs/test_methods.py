"""What each method does to an adapter, and what its controls hold equal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor, nn

from antidote_llm.calibration.moments import Moments, SiteMoments
from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.io.safetensors_files import open_tensor_file
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.sites import Role, Site
from antidote_llm.models.target import Target
from antidote_llm.repairs.edits import Problem, plan, planned_norm
from antidote_llm.repairs.method import method_named, methods
from antidote_llm.repairs.plan import HarmfulData, PlannedRepair, plan_repair
from antidote_llm.repairs.update_norm import UpdateNorms
from tests.conftest import Folders
from tests.repairs.chosen import chosen_masks, whole_plan


def repaired(folders: Folders, name: str, /, preset: str | None = None, **given: object) -> PlannedRepair:
    opened = load_model(str(folders.base), str(folders.adapter))
    method = method_named(name)
    data = HarmfulData(("rows",), read_records(folders.harmful), Renderer(opened.tokenizer))
    return plan_repair(opened, method, method.configure(given, preset), data)


def norm(repair: PlannedRepair) -> float:
    return planned_norm(whole_plan(repair))


def logits(opened: LoadedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = opened.model(torch.arange(5, 25).reshape(2, 10)).logits
    return found


def test_the_installed_methods_are_the_entry_points() -> None:
    assert {"antidote", "random", "magnitude", "interpolate"} <= methods().keys()


@pytest.mark.parametrize("name", ["antidote", "random", "magnitude"])
def test_alpha_0_changes_nothing_and_alpha_1_removes_all(folders: Folders, name: str) -> None:
    nothing, everything = repaired(folders, name, alpha=0.0), repaired(folders, name, alpha=1.0)
    for site in nothing.target.sites:
        assert torch.equal(whole_plan(nothing).edit(site).after_OI, nothing.target.weight(site))
        assert not whole_plan(everything).edit(site).after_OI.any()


@pytest.mark.parametrize("scope", ["row", "matrix", "layer", "global"])
def test_random_removes_as_many_as_antidote(folders: Folders, scope: str) -> None:
    chosen = [chosen_masks(repaired(folders, name, scope=scope, alpha=0.2)) for name in ("antidote", "random")]
    totals = [sum(int(mask.sum()) for mask in of_site.values()) for of_site in chosen]
    assert totals[0] == totals[1] > 0


def test_random_is_a_draw_by_seed(folders: Folders) -> None:
    drawn = [chosen_masks(repaired(folders, "random", seed=seed)) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([mask.flatten() for mask in of_site.values()]) for of_site in drawn)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("scope", ["row", "matrix"])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_controls_match_the_update_norm(folders: Folders, scope: str, alpha: float) -> None:
    wanted = norm(repaired(folders, "antidote", alpha=alpha, scope=scope))
    assert norm(repaired(folders, "interpolate", alpha=alpha, scope=scope)) == pytest.approx(wanted, rel=1e-6)
    # A count moves in steps: in a row of 8 entries it can only come near.
    near = 0.1 if scope == "row" else 0.01
    found = repaired(folders, "random", alpha=alpha, scope=scope, match="update-norm")
    assert norm(found) == pytest.approx(wanted, rel=near)


@pytest.mark.parametrize("name", ["interpolate", "random"])
def test_a_control_changes_nothing_where_antidote_shrinks_nothing(tmp_path: Path, name: str) -> None:
    # The two columns of B cancel each other but for a tenth: without the second, more is left than before.
    shapes: dict[Role, tuple[int, int]] = {"lora_A": (2, 4), "lora_B": (4, 2)}
    sites = tuple(Site(role, "q", role, "f", role, shape, 1.0, (nn.Identity(),)) for role, shape in shapes.items())
    weights = {"lora_A": torch.ones(2, 4), "lora_B": torch.tensor([[1.0, -1.1]]).repeat(4, 1)}
    save_file(weights, tmp_path / "f")
    checkpoint = Checkpoint("f", tmp_path, {}, {"f": open_tensor_file(tmp_path / "f")}, {})
    ones = {}
    for site in sites:
        one_I = torch.ones(site.shape[1]).double()
        ones[site.name] = SiteMoments(one_I, one_I, tokens=1)
    target = Target("adapter", checkpoint, sites, None, (), None)
    problem = Problem(target, Moments(ones, rows=1, tokens=1, sha256=""))
    method = method_named(name)
    given = {"alpha": 0.25, "rounding": "official", **({"match": "update-norm"} if name == "random" else {})}
    found = plan(problem, method, method.configure(given))
    assert all(torch.equal(found.edit(site).after_OI, weights[site.role]) for site in sites)


def test_interpolate_scales_the_update(folders: Folders) -> None:
    repair = repaired(folders, "interpolate", keep=0.25)
    assert norm(repair) == pytest.approx(0.25 * norm(repaired(folders, "interpolate", keep=1.0)))


def test_strength_weakens_the_chosen_and_nothing_else(folders: Folders) -> None:
    repair = repaired(folders, "antidote", strength=0.25)
    for site in repair.target.sites:
        edit = whole_plan(repair).edit(site)
        old, new, mask = edit.before_OI, edit.after_OI, edit.chosen_OI
        assert mask is not None
        assert torch.equal(new[mask], old[mask] * 0.75)
        assert torch.equal(new[~mask], old[~mask])


def test_update_norms_are_those_of_the_dense_update(folders: Folders) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    norms, target = UpdateNorms(), repaired(folders, "antidote", alpha=0.0).target
    for site in target.sites:
        norms.add(site, target.weight(site), None)
    found = norms.norms()
    assert found.keys() == {site.module for site in target.sites}
    for name, module in opened.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            wanted = float(module.get_delta_weight("default").norm())
            assert found[name.removeprefix("base_model.model.")] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("statistic", ["rms", "mean_norm", "token_rms"])
def test_scores_are_weight_times_norm(folders: Folders, statistic: str, power: int) -> None:
    repair = repaired(folders, "antidote", scope="matrix", statistic=statistic, norm_power=power, alpha=0.2)
    moments, chosen = whole_plan(repair).problem.moments, chosen_masks(repair)
    assert moments is not None
    for site in repair.target.sites:
        norm_I = moments.input_norm(site.name, statistic)  # type: ignore[arg-type]
        score = repair.target.weight(site).double().abs() * norm_I**power
        assert score[chosen[site.name]].min() >= score[~chosen[site.name]].max() * (1 - 1e-6)


def test_presets() -> None:
    antidote = method_named("antidote")

    def values(settings: BaseModel) -> dict[str, object]:
        return settings.model_dump()

    assert values(antidote.configure({}, "paper"))["statistic"] == "mean_norm"
    official = values(antidote.configure({"alpha": 0.05}, "official-code"))
    assert (official["rounding"], official["statistic"], official["alpha"]) == ("official", "rms", 0.05)


@pytest.mark.parametrize(
    ("name", "given", "preset", "message"),
    [
        ("antidot", {}, None, "did you mean antidote"),
        ("antidote", {"alpha": 1.5}, None, "alpha 1.5"),
        ("antidote", {"alpha": -0.1}, None, "alpha -0.1"),
        ("antidote", {"alpha": math.nan}, None, "alpha nan"),
        ("antidote", {"keep": 0.5}, None, "keep is no setting of antidote"),
        ("antidote", {}, "best", "official-code"),
        ("magnitude", {}, "paper", "magnitude has no presets: leave it out"),
    ],
)
def test_wrong_settings_are_named(name: str, given: dict[str, object], preset: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_named(name).configure(given, preset)


def test_a_method_that_reads_data_asks_for_it(folders: Folders) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    method = method_named("antidote")
    with pytest.raises(UserError, match="pass harmful DATA"):
        plan_repair(opened, method, method.configure({}), None)


def test_a_model_without_adapter_is_refused(folders: Folders) -> None:
    method = method_named("magnitude")
    with pytest.raises(UserError, match=r"adapter DIR, or .*aligned REF"):
        plan_repair(load_model(str(folders.base)), method, method.configure({}), None)


def test_a_norm_that_cannot_be_matched_is_refused(folders: Folders) -> None:
    with pytest.raises(UserError, match="raise strength"):
        repaired(folders, "random", alpha=0.5, strength=0.1, match="update-norm")
