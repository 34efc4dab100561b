"""The yardstick of the benchmarks against the published algorithm written out in the plainest way, and against ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from antidote_llm.calibration.settings import CalibrationSettings
from benchmarks.mask_agreement import agreement
from benchmarks.published_loop import apply_masks, published_masks
from benchmarks.random_llama import Shape, opened, random_rows, write_checkpoint
from benchmarks.scoring import ALPHA, Subject
from tests.repairs import published_code

SHAPE = Shape(width=32, inner=48, layers=2, heads=4, rank=8, rows=12, tokens=240, vocabulary=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    write_checkpoint(SHAPE, path)
    return path


def test_layer_by_layer_gives_the_masks_of_whole_passes(folder: Path) -> None:
    ids = [row.input_ids for row in random_rows(SHAPE)]
    found = published_masks(opened(folder).model, ids, ALPHA)
    plainest = published_code.published_masks(folder / "base", folder / "adapter", ids, ALPHA)
    assert len(found) == len(plainest) == 2 * 3 * SHAPE.layers
    for name, mask_OI in plainest.items():
        peft_name = f"base_model.model.{name}.default.weight"
        assert torch.equal(found[peft_name].bool(), mask_OI), name


def test_ours_and_the_published_loop_choose_the_same_entries(folder: Path) -> None:
    subject = Subject(opened(folder), random_rows(SHAPE), CalibrationSettings().batch_tokens)
    found = agreement(subject.scored(), subject.published())
    assert found.entries == 3 * SHAPE.layers * 2 * SHAPE.rank * SHAPE.width
    assert found.differing == 0


def test_the_agreement_counts_entries_and_tells_how_near_they_were(folder: Path) -> None:
    subject = Subject(opened(folder), random_rows(SHAPE), CalibrationSettings().batch_tokens)
    published = subject.published()
    name, mask_OI = next(iter(published.items()))
    published[name] = 1 - mask_OI
    found = agreement(subject.scored(), published)
    assert found.differing == mask_OI.numel()
    assert found.largest_gap > 0.1


def test_masks_are_applied_in_the_end(folder: Path) -> None:
    model = opened(folder).model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    masks = published_masks(model, [row.input_ids for row in random_rows(SHAPE)], ALPHA)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    apply_masks(model, masks)
    for name, parameter in model.named_parameters():
        kept = before[name] * (1 - masks[name]) if name in masks else before[name]
        assert torch.equal(parameter, kept), name
    assert sum(int(mask_OI.sum()) for mask_OI in masks.values()) > 0


def test_rows_add_up_to_the_shape() -> None:
    lengths = [len(row.input_ids) for row in random_rows(SHAPE)]
    assert (len(lengths), sum(lengths)) == (SHAPE.rows, SHAPE.tokens)
    assert len(set(lengths)) > 4
