"""Every matrix of every expert is a site at its place in the file, and can be observed without changing the model."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.experts import ExpertInlet, expert_stacks, observed_experts
from antidote_llm.models.sites import chosen_sites
from antidote_llm.models.skeleton import open_skeleton
from antidote_llm.models.tensor_names import tensor_sources
from antidote_llm.models.weight_sites import weight_sites
from tests import mixtures
from tests.architectures import write_checkpoint

_ROUTER = re.compile(r"\.(gate|router|shared_expert_gate)\.")
TOKENS = torch.arange(5, 25).reshape(2, 10)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtures")
    for name in (*mixtures.MIXTURES, *mixtures.REFUSED_MIXTURES):
        mixtures.write(folder / name, name)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_sites_hold_every_matrix_of_the_decoder_layers(name: str, shelf: Path) -> None:
    stored = load_file(shelf / name / "model.safetensors")
    sites = weight_sites(loaded(shelf / name), open_model_checkpoint(str(shelf / name)), "all")
    matrices = {
        key: tensor
        for key, tensor in stored.items()
        if tensor.dim() >= 2 and re.search(r"\.\d+\.", key) and not _ROUTER.search(key)
    }
    left_out = {key for key in matrices if key.endswith(("_bias", "conv1d.weight"))}
    wanted = {key: tensor.numel() for key, tensor in matrices.items() if key not in left_out}
    found = dict.fromkeys(wanted, 0)
    for site in sites:
        found[site.key] += math.prod(site.shape)
    assert found == wanted
    assert len({(site.key, site.part) for site in sites}) == len({site.name for site in sites}) == len(sites)
    assert sum(site.expert is not None for site in sites) >= 2 * 4


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_a_site_is_the_matrix_that_its_expert_computes_with(name: str, shelf: Path) -> None:
    model, checkpoint = loaded(shelf / name), open_model_checkpoint(str(shelf / name))
    for site in weight_sites(model, checkpoint, "all"):
        if site.expert is None:
            continue
        experts: Any = model.get_submodule(site.module.rsplit(".", 2)[0])
        part = site.kind in ("down_proj", "w2")
        stack = experts.down_proj if part else experts.gate_up_proj
        whole_OI = stack[site.expert].T if experts.is_transposed else stack[site.expert]
        half = len(whole_OI) // 2
        wanted = {"gate_proj": whole_OI[:half], "w1": whole_OI[:half], "up_proj": whole_OI[half:]}
        wanted |= {"w3": whole_OI[half:], "gate_up_proj": whole_OI, "down_proj": whole_OI, "w2": whole_OI}
        stored = checkpoint.weights[site.file].read(site.key)
        values = site.turned(stored if site.part is None else stored[site.part])
        assert torch.equal(values, wanted[site.kind]) and values.shape == site.shape
        assert site.layer is not None and f".{site.expert}." in site.module


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_a_skeleton_has_the_same_sites(name: str, shelf: Path) -> None:
    checkpoint = open_model_checkpoint(str(shelf / name))
    places = [
        [(site.name, site.key, site.shape, site.part, site.expert, site.transposed) for site in found]
        for found in (
            weight_sites(loaded(shelf / name), checkpoint, "all"),
            weight_sites(open_skeleton(str(shelf / name)).model(), checkpoint, "all"),
        )
    ]
    assert places[0] == places[1]


def test_patterns_name_experts(shelf: Path) -> None:
    sites = weight_sites(loaded(shelf / "mixtral"), open_model_checkpoint(str(shelf / "mixtral")), "all")
    count = {
        pattern: len(chosen_sites(sites, pattern)) for pattern in ("attention", "qkv", "mlp", "w2", "*.experts.3.*")
    }
    assert count == {"attention": 8, "qkv": 6, "mlp": 24, "w2": 8, "*.experts.3.*": 6}


@pytest.mark.parametrize("name", mixtures.REFUSED_MIXTURES)
def test_experts_that_cannot_be_observed_are_refused_by_name(name: str, shelf: Path) -> None:
    with pytest.raises(UserError, match=r"layers\.0\..*with sites attention"):
        weight_sites(loaded(shelf / name), open_model_checkpoint(str(shelf / name)), "all")


def test_values_that_the_files_do_not_hold_are_refused(shelf: Path) -> None:
    checkpoint = open_model_checkpoint(str(shelf / "mixtral"))
    model: Any = loaded(shelf / "mixtral")
    stack = model.model.layers[1].mlp.experts.gate_up_proj
    stack.data[2] = stack.data[2].roll(1, dims=0)
    with pytest.raises(UserError, match=r"layers\.1\.block_sparse_moe\.experts\.2\.w[13]\.weight is not what"):
        weight_sites(model, checkpoint, "all")
    assert weight_sites(model, checkpoint, "attention")


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_observed_experts_compute_the_same(name: str, shelf: Path) -> None:
    model = loaded(shelf / name)
    for module_name, module in list(model.named_modules()):
        expert_stacks(module_name, module)
    seen: list[tuple[int, int]] = []
    for inlet in [module for module in model.modules() if isinstance(module, ExpertInlet)]:
        inlet.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), args[3])))
    with torch.no_grad():
        plain = model(TOKENS).logits
        assert not seen
        with observed_experts(model):
            observed = model(TOKENS).logits
            assert torch.equal(observed, model(TOKENS).logits)
        once = len(seen)
        assert torch.equal(plain, model(TOKENS).logits) and len(seen) == once
    assert (plain - observed).abs().max() < 1e-5 * plain.abs().max()
    inlets = sum(isinstance(module, ExpertInlet) for module in model.modules())
    assert sum(rows for rows, _ in seen) == 2 * inlets * TOKENS.numel() * seen[0][1]


def test_a_failure_leaves_the_experts_as_they_were(shelf: Path) -> None:
    model: Any = loaded(shelf / "qwen3_moe")
    before = model.config._experts_implementation
    with pytest.raises(ZeroDivisionError), observed_experts(model):
        assert model.config._experts_implementation != before
        raise ZeroDivisionError
    assert model.config._experts_implementation == before


@pytest.mark.parametrize("name", [*mixtures.MIXTURES, "llama", "gpt2", "gpt2-without-head", "phi3", "qwen2", "falcon"])
def test_sources_make_what_transformers_loads(name: str, shelf: Path) -> None:
    folder = shelf / name if name in mixtures.MIXTURES else shelf / f"plain-{name}"
    if not folder.exists():
        write_checkpoint(folder, name)
    model = loaded(folder)
    made = tensor_sources(open_model_checkpoint(str(folder)), model)
    ties = getattr(model, "all_tied_weights_keys", {})
    for key, value in model.state_dict().items():
        if key in ties and key not in made:
            continue
        source = made[key]
        groups = [[stored.file.read(stored.entry.key) for stored in group] for group in source.groups]
        if source.layout == "stacked":
            built = torch.cat([torch.stack(group) for group in groups], dim=1)
        else:
            built = groups[0][0] if source.layout == "same" else groups[0][0].transpose(1, 2)
        assert source.layout != "other" and torch.equal(built, value), key
