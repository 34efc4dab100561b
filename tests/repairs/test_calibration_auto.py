"""``--calibration auto`` asks the score of the method itself, and refuses methods that have no such score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from antidote_llm.calibration.collect import Collection
from antidote_llm.calibration.moments import Moments, SiteMoments
from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer, TokenizedRow
from antidote_llm.errors import UserError
from antidote_llm.models.load import load_model
from antidote_llm.models.sites import Site
from antidote_llm.repairs.method import ColumnScore, RepairMethod, SiteInputs, method_named, methods, score_method
from antidote_llm.repairs.plan import HarmfulData, PlannedRepair, PlanOptions, plan_repair
from antidote_llm.repairs.record import CalibrationData
from tests import tiny
from tests.conftest import Folders

AUTO = PlanOptions(cache=False, until_settled=True)


@score_method(needs_harmful=True, column_score=lambda settings: ColumnScore("mean_norm", 2))
def squared(site: SiteInputs) -> Tensor:
    """|update| times the squared mean norm of its column, which Antidote does not score by default."""
    norm_I = site.harmful.input_norm(site.site.name, "mean_norm").to(site.weight_OI.dtype)
    return site.update_OI.abs() * norm_I**2


@score_method(needs_harmful=True)
def undeclared(site: SiteInputs) -> Tensor:
    """A score that reads the harmful data and is not declared to be a column's."""
    return site.update_OI.abs() * site.harmful.input_norm(site.site.name, "rms").float().sort().values


def repaired(folders: Folders, method: RepairMethod, options: PlanOptions = AUTO, **given: Any) -> PlannedRepair:
    opened = load_model(str(folders.base), str(folders.adapter))
    rows = tiny.write_rows(folders.harmful.parent / "many.jsonl", 200, seed=5)
    data = HarmfulData(("rows",), read_records(rows), Renderer(opened.tokenizer))
    return plan_repair(opened, method, method.configure(given), data, options=options)


def calibration(repair: PlannedRepair) -> CalibrationData:
    assert repair.calibration is not None
    return repair.calibration


def test_another_packages_method_is_asked_for_its_own_mask(folders: Folders) -> None:
    antidote = method_named("antidote")
    settings: dict[str, Any] = {"alpha": 0.3, "scope": "matrix"}
    own = calibration(repaired(folders, squared, **settings))
    same = calibration(repaired(folders, antidote, statistic="mean_norm", norm_power=2, **settings))
    default = calibration(repaired(folders, antidote, **settings))
    assert own.agreement_bound is not None and own.of_rows == 200
    assert (own.rows, own.agreement_bound) == (same.rows, same.agreement_bound)
    assert (own.rows, own.agreement_bound) != (default.rows, default.agreement_bound)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        (undeclared, {}, "method undeclared makes none: use all"),
        (method_named("random"), {"match": "update-norm"}, "method random makes none: use all"),
        (method_named("interpolate"), {}, "method interpolate makes none: use all"),
        (method_named("magnitude"), {}, "method magnitude uses no statistics as it is set: leave it out"),
        (method_named("random"), {}, "method random uses no statistics as it is set: leave it out"),
    ],
)
def test_a_method_without_a_column_score_is_refused_by_name(
    folders: Folders, method: RepairMethod, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=f"calibration auto.*{words}") as refusal:
        repaired(folders, method, **given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("statistic", ["rms", "mean_norm", "token_rms"])
def test_antidotes_column_score_is_its_score(statistic: str, power: int) -> None:
    (declared,) = (method for method in methods().values() if method.column_score is not None)
    settings = declared.configure({"statistic": statistic, "norm_power": power})
    assert declared.column_score is not None
    score = declared.column_score(settings)
    chance = torch.Generator().manual_seed(0)
    site = Site("m", "m", "weight", "f", "m", (5, 7), 1.0, (nn.Identity(),))
    sums = [torch.rand(7, generator=chance).double() for _ in range(2)]
    moments = Moments({"m": SiteMoments(sums[0], sums[1], 9)}, 4, 9, "")
    weight_OI, reference_OI = torch.randn(2, 5, 7, generator=chance)
    found = declared.function(SiteInputs(site, weight_OI, reference_OI, moments), **declared.arguments(settings))
    norm_I = moments.input_norm("m", score.statistic)
    assert torch.allclose(found.double(), (weight_OI - reference_OI).abs() * norm_I**score.norm_power)


def test_equal_rows_are_told_apart(folders: Folders) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    row = TokenizedRow([5, 6, 7], 1)
    collection = Collection.of(opened, [row, TokenizedRow([5, 6], 1), row])
    seen: list[int] = []

    def on_squares(rows: Any, site_names: Any, squares_BI: Tensor) -> None:
        if collection.sites[0].name in site_names:
            assert len(rows) == len(squares_BI)
            seen.extend(rows)

    collection.whole(cache=False, on_squares=on_squares)
    assert sorted(seen) == [0, 1, 2]
