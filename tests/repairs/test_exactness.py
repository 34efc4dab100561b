"""The masks are those of the published algorithm, whatever the batch and the padding."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import HarmfulData, PlanOptions, plan_repair
from tests import tiny
from tests.conftest import Folders
from tests.repairs.chosen import chosen_masks, whole_plan
from tests.repairs.published_code import published_masks

RANKS = (4, 8, 16, 64)
ALPHAS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.25, 0.5, 0.9, 1.0)


def ragged_rows(seed: int, count: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 24, (count,), generator=generator).tolist()
    return [torch.randint(tiny.VOCABULARY_SIZE, (n,), generator=generator).tolist() for n in lengths]


def masks(
    opened: LoadedModel, rows: list[list[int]], calibration: CalibrationSettings, **given: object
) -> dict[str, Tensor]:
    data = HarmfulData(("rows",), [Record(input_ids=tuple(row)) for row in rows], Renderer(None))
    method = method_named("antidote")
    options = PlanOptions(cache=False)
    planned = plan_repair(opened, method, method.configure(given, "official-code"), data, calibration, options=options)
    return chosen_masks(planned)


@pytest.fixture(scope="module", params=RANKS)
def by_rank(
    request: pytest.FixtureRequest, folders: Folders, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LoadedModel]:
    adapter = tiny.write_adapter(
        tmp_path_factory.mktemp("rank") / "adapter", folders.base, rank=request.param, seed=request.param
    )
    return adapter, load_model(str(folders.base), str(adapter))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_the_published_algorithm_bit_for_bit(
    by_rank: tuple[Path, LoadedModel], folders: Folders, alpha: float
) -> None:
    adapter, opened = by_rank
    rows = ragged_rows(seed=round(1000 * alpha))
    wanted = published_masks(folders.base, adapter, rows, alpha)
    found = masks(opened, rows, CalibrationSettings(batch_rows=1), alpha=alpha)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert sum(int(mask.sum()) for mask in found.values()) > 0


def near_threshold(opened: LoadedModel, rows: list[list[int]], name: str, mask: Tensor) -> Tensor:
    """Mark the entries whose score is within 1e-5 relative of the lowest score that was chosen in their row."""
    method = method_named("antidote")
    data = HarmfulData(("rows",), [Record(input_ids=tuple(row)) for row in rows], Renderer(None))
    repair = plan_repair(opened, method, method.configure({}), data, options=PlanOptions(cache=False))
    problem = whole_plan(repair).problem
    assert problem.moments is not None
    (site,) = (site for site in problem.target.sites if site.name == name)
    score = problem.target.weight(site).double().abs() * problem.moments.input_norm(name, "rms")
    threshold = score.masked_fill(~mask, float("inf")).amin(dim=1, keepdim=True)
    return (score / threshold - 1).abs() < 1e-5


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.floats(0.001, 1),
    batch_rows=st.sampled_from([2, 7, 32]),
    side=st.sampled_from(["left", "right"]),
)
def test_batch_and_padding_do_not_change_the_masks(
    folders: Folders, seed: int, alpha: float, batch_rows: int, side: Literal["left", "right"]
) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    rows = ragged_rows(seed, count=33)
    one = masks(opened, rows, CalibrationSettings(batch_rows=1), alpha=alpha)
    many = masks(opened, rows, CalibrationSettings(batch_rows=batch_rows, padding_side=side), alpha=alpha)
    for name in one:
        assert not ((one[name] ^ many[name]) & ~near_threshold(opened, rows, name, one[name])).any()


def test_the_order_of_the_rows_does_not_change_the_masks(folders: Folders) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    rows = ragged_rows(3)
    for name, mask in masks(opened, rows, CalibrationSettings(), alpha=0.3).items():
        assert torch.equal(mask, masks(opened, rows[::-1], CalibrationSettings(), alpha=0.3)[name])


@pytest.mark.parametrize("rank", [4, 64])
def test_counts_of_the_published_rounding(folders: Folders, tmp_path: Path, rank: int) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", folders.base, rank=rank)
    opened = load_model(str(folders.base), str(adapter))
    for alpha, site in itertools.product(ALPHAS, opened.sites):
        mask = masks(opened, ragged_rows(1), CalibrationSettings(), alpha=alpha)[site.name]
        columns = site.shape[1]
        assert mask.sum(dim=1).tolist() == [columns - int(columns * (1 - alpha))] * site.shape[0]
