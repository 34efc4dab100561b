"""Every expert has the sums of what the router sends it, as a loop over tokens would form them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from antidote_llm.calibration.collect import collect
from antidote_llm.calibration.input_hooks import RoutedInputs, experts_seen
from antidote_llm.calibration.moments import MomentAccumulator
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import load_model
from antidote_llm.models.sites import Site
from antidote_llm.models.target import resolve_target
from antidote_llm.models.weight_sites import weight_sites
from tests import mixtures

NAMES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen2_moe", "granitemoe")
ROWS = ([5, 9, 30, 11, 6, 7, 21], [8, 8, 13], [33, 17, 6, 29, 12])
# The row's last tokens that count, as where responses alone do.
COUNTED = (7, 2, 3)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routed")
    for name in NAMES:
        mixtures.write(folder / name, name)
    return folder


def opened(folder: Path) -> tuple[PreTrainedModel, list[Site]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    sites = weight_sites(model, open_model_checkpoint(str(folder)), "all")
    return model, [site for site in sites if site.expert is not None]


def padded(*, left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, the attention mask and what counts of the rows as one batch."""
    width = max(map(len, ROWS))
    ids_BT, mask_BT, counted_BT = (torch.zeros(len(ROWS), width, dtype=torch.long) for _ in range(3))
    for index, (row, counted) in enumerate(zip(ROWS, COUNTED, strict=True)):
        end = width if left else len(row)
        ids_BT[index, end - len(row) : end] = torch.tensor(row)
        mask_BT[index, end - len(row) : end] = 1
        counted_BT[index, end - counted : end] = 1
    return ids_BT, mask_BT, counted_BT.bool()


@contextmanager
def hooked(model: PreTrainedModel, inputs: RoutedInputs, sites: list[Site]) -> Iterator[list[int]]:
    done: list[int] = []
    handles = inputs.hooks(lambda: done.append(1))
    with torch.inference_mode(), experts_seen(model, sites):
        yield done
    for handle in handles:
        handle.remove()


def routed_sums(model: PreTrainedModel, sites: list[Site], *, left: bool = False) -> MomentAccumulator:
    ids_BT, mask_BT, counted_BT = padded(left=left)
    sums, inputs = MomentAccumulator(), RoutedInputs(sites)
    positions = (mask_BT.cumsum(dim=1) - 1).clamp_min(0)
    with hooked(model, inputs, sites) as done:
        inputs.start(counted_BT, sums)
        model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions)
        inputs.finish()
    assert len(done) == len(inputs.inlets)
    return sums


def plain_sums(model: PreTrainedModel, site: Site) -> tuple[Tensor, Tensor, int]:
    experts, _, kind = site.module.rsplit(".", 2)
    stack = "down_proj" if kind in ("down_proj", "w2") else "gate_up_proj"
    squares = norms = torch.zeros(site.shape[1], dtype=torch.float64)
    tokens = 0
    for row, counted in zip(ROWS, COUNTED, strict=True):
        of, input_SI = mixtures.inputs_of_experts(model, row).get((experts, stack, site.expert or 0), ([], Tensor()))
        kept = [input_I.double() for token, input_I in zip(of, input_SI, strict=True) if token >= len(row) - counted]
        if kept:
            row_squares = torch.stack(kept).square().sum(dim=0)
            squares, norms, tokens = squares + row_squares, norms + row_squares.sqrt(), tokens + len(kept)
    return squares, norms, tokens


@pytest.mark.parametrize("name", NAMES)
def test_both_engines_have_the_same_bits(name: str, shelf: Path) -> None:
    rows = [TokenizedRow(list(row), len(row) - counted) for row, counted in zip(ROWS, COUNTED, strict=True)]
    settings = CalibrationSettings(tokens="response", batch_rows=2)
    found = []
    for on_disk in (False, True):
        model = load_model(str(shelf / name), layers_on_disk=on_disk)
        sites = resolve_target(model, "weight").sites
        found.append(collect(model, rows, settings, sites=sites, cache=False).sites)
    assert found[0].keys() == found[1].keys()
    for in_memory, by_layer in ((found[0][site], found[1][site]) for site in found[0]):
        assert torch.equal(in_memory.sum_squares_I, by_layer.sum_squares_I)
        assert torch.equal(in_memory.sum_norms_I, by_layer.sum_norms_I)
        assert in_memory.tokens == by_layer.tokens


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_a_loop_over_tokens(name: str, left: bool, shelf: Path) -> None:
    model, sites = opened(shelf / name)
    sums = routed_sums(model, sites, left=left)
    unseen = 0
    for site in sites:
        squares_I, norms_I, tokens = plain_sums(model, site)
        unseen += tokens == 0
        assert sums.tokens[site.name] == tokens, site.name
        for found_I, wanted_I in ((sums.squares[site.name], squares_I), (sums.norms[site.name], norms_I)):
            assert (found_I - wanted_I).abs().max() <= 1e-5 * wanted_I.max()
    assert unseen < len(sites)
    layers = {site.layer for site in sites}
    downs = [site for site in sites if site.kind in ("down_proj", "w2")]
    assert sum(sums.tokens[site.name] for site in downs) == len(layers) * 2 * sum(COUNTED)


def test_an_expert_that_saw_nothing_has_sums_of_zero(shelf: Path) -> None:
    model, sites = opened(shelf / "mixtral")
    router: Any = model.get_submodule("model.layers.0.mlp.gate")
    router.weight.data.zero_()
    router.weight.data[2:] = torch.tensor([[1e3], [2e3]]) * torch.ones(2, 32)
    model.get_submodule("model.layers.0.post_attention_layernorm").get_parameter("weight").data.zero_()
    # All scores are equal: the first two experts are everybody's choice.
    sums = routed_sums(model, sites)
    first = [site for site in sites if site.layer == 0]
    idle = [site for site in first if sums.tokens[site.name] == 0]
    assert {site.expert for site in idle} and len(idle) == 6
    for site in idle:
        assert sums.squares[site.name].shape == (site.shape[1],) and not sums.squares[site.name].any()
        assert not sums.norms[site.name].any()


def test_experts_that_were_passed_by_are_refused(shelf: Path) -> None:
    model, sites = opened(shelf / "qwen3_moe")
    ids_BT, mask_BT, counted_BT = padded()
    inputs = RoutedInputs(sites)
    with hooked(model, inputs, sites):
        model.config._experts_implementation = "eager"
        inputs.start(counted_BT, MomentAccumulator())
        model(input_ids=ids_BT, attention_mask=mask_BT)
        with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.experts\.0\.\w+: all experts saw 0 of 12 tokens"):
            inputs.finish()


def test_experts_that_are_used_twice_are_refused(shelf: Path) -> None:
    model, sites = opened(shelf / "qwen3_moe")
    ids_BT, mask_BT, counted_BT = padded()
    inputs = RoutedInputs(sites)
    with hooked(model, inputs, sites):
        inputs.start(counted_BT, MomentAccumulator())
        for _ in range(2):
            model(input_ids=ids_BT, attention_mask=mask_BT)
        with pytest.raises(UserError, match="all experts saw 48 of 24 tokens"):
            inputs.finish()


def test_sites_of_some_experts_are_enough(shelf: Path) -> None:
    model, sites = opened(shelf / "gpt_oss")
    some = [site for site in sites if site.expert == 3 and site.layer == 1]
    everything, sums = routed_sums(model, sites), routed_sums(model, some)
    assert sums.tokens.keys() == {site.name for site in some}
    assert all(torch.equal(sums.squares[name], everything.squares[name]) for name in sums.tokens)
