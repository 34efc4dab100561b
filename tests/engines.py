"""Collects statistics of tiny models by both engines, and holds them to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from antidote_llm.calibration.collect import Collection
from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.models.decoder import decoder_layers
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import Target, resolve_target
from tests import tiny

LENGTHS = (1, 9, 4, 12, 7, 3, 10, 5)
# Five micro-batches, all but one of them with pads.
SETTINGS = CalibrationSettings(batch_tokens=24)


def rows() -> list[TokenizedRow]:
    chance = torch.Generator().manual_seed(0)
    ids = [torch.randint(tiny.VOCABULARY_SIZE, (length,), generator=chance).tolist() for length in LENGTHS]
    return [TokenizedRow(row, len(row) // 3) for row in ids]


def statistics(
    opened: LoadedModel, target: Target, settings: CalibrationSettings = SETTINGS, **options: Any
) -> Moments:
    return Collection.of(opened, rows(), settings, target.sites).whole(cache=False, **options)


def assert_same_bits(found: Moments, wanted: Moments) -> None:
    assert replace(found, sites={}) == replace(wanted, sites={})
    assert found.sites.keys() == wanted.sites.keys()
    for name, one in wanted.sites.items():
        other = found.sites[name]
        assert one.tokens == other.tokens, name
        assert torch.equal(one.sum_squares_I, other.sum_squares_I), name
        assert torch.equal(one.sum_norms_I, other.sum_norms_I), name


def assert_engines_agree(
    model: Path, adapter: Path | None = None, settings: CalibrationSettings = SETTINGS, pattern: str = "all"
) -> tuple[LoadedModel, Target, Moments]:
    name: Any = "weight" if adapter is None else "adapter"
    whole, parts = (
        load_model(str(model), str(adapter) if adapter else None, layers_on_disk=each) for each in (False, True)
    )
    target, same_target = (resolve_target(each, name, pattern=pattern) for each in (whole, parts))
    assert [site.name for site in target.sites] == [site.name for site in same_target.sites]
    wanted = statistics(whole, target, settings)
    for sweeps in (1, 3):
        assert_same_bits(statistics(parts, same_target, settings, sweeps=sweeps), wanted)
    stack, layers = decoder_layers(parts.causal_model, "the model")
    # What was read has been given back.
    assert all(parameter.is_meta for name, parameter in layers.named_parameters(prefix=stack) if "lora_" not in name)
    return whole, target, wanted
