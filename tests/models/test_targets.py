"""Which matrices can be edited, what they are compared with, and which targets are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from antidote_llm.calibration.collect import collect
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.errors import UserError
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from antidote_llm.models.weight_sites import weight_sites
from tests import tiny
from tests.conftest import Folders
from tests.fine_tunes import config_of, tensors_of, write_fine_tune, write_random

KINDS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


@pytest.fixture(scope="module")
def tuned(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fine_tune(tmp_path_factory.mktemp("tuned") / "tuned", folders.base)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("all", 2 * 7),
        ("attention", 2 * 4),
        ("mlp", 2 * 3),
        ("qkv", 2 * 3),
        ("q_proj", 2),
        ("q_proj, v_proj,", 2 * 2),
        ("*.layers.1.*", 7),
        ("*.0.mlp.*,o_proj", 3 + 2),
        ("*.layers.[01].*.?_proj", 2 * 4),
        ("attention,down_proj", 2 * 4 + 2),
        ("mlp, qkv", 2 * 3 + 2 * 3),
        ("q_proj,all", 2 * 7),
    ],
)
def test_patterns_choose_matrices(folders: Folders, tuned: Path, pattern: str, wanted: int) -> None:
    target = resolve_target(load_model(str(tuned)), aligned=str(folders.base), pattern=pattern)
    assert len(target.sites) == wanted
    assert target.name == "delta"
    # What is chosen and what is outside make up the whole file.
    keys = {site.key for site in target.sites} | {tensor.key for tensor in target.outside}
    assert keys == tensors_of(tuned).keys()


@pytest.mark.parametrize("pattern", ["x_proj", "q_proj,x_proj", "*.layers.7.*", "", "layers"])
def test_a_pattern_without_a_match_lists_the_kinds(tuned: Path, pattern: str) -> None:
    with pytest.raises(UserError, match="matches no matrix") as caught:
        resolve_target(load_model(str(tuned)), "weight", pattern=pattern)
    assert KINDS in str(caught.value) and "\n" not in str(caught.value)


def test_patterns_choose_factors_of_an_adapter(folders: Folders) -> None:
    target = resolve_target(load_model(str(folders.base), str(folders.adapter)), pattern="q_proj")
    assert [(site.kind, site.role) for site in target.sites] == [("q_proj", "lora_A"), ("q_proj", "lora_B")] * 2
    with pytest.raises(UserError, match="there are k_proj, q_proj, v_proj;"):
        resolve_target(load_model(str(folders.base), str(folders.adapter)), pattern="o_proj")


def test_a_head_is_neither_attention_nor_mlp(folders: Folders, tmp_path: Path) -> None:
    targets = ("q_proj", "down_proj", "lm_head")
    opened = load_model(str(folders.base), str(tiny.write_adapter(tmp_path / "adapter", folders.base, targets=targets)))
    for pattern, wanted in (
        ("mlp", {"down_proj"}),
        ("attention", {"q_proj"}),
        ("mlp,lm_head", {"down_proj", "lm_head"}),
    ):
        assert {site.kind for site in resolve_target(opened, pattern=pattern).sites} == wanted


@pytest.mark.parametrize("name", ["delta", "weight"])
def test_a_whole_target_under_an_adapter_is_refused(folders: Folders, name: str) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    with pytest.raises(UserError, match="merge_and_unload in peft"):
        resolve_target(opened, name, aligned=str(folders.base))  # type: ignore[arg-type]


def test_what_cannot_be_resolved_says_what_to_pass(folders: Folders) -> None:
    whole, adapted = load_model(str(folders.base)), load_model(str(folders.base), str(folders.adapter))
    with pytest.raises(UserError, match="pass adapter DIR, or aligned REF"):
        resolve_target(whole)
    with pytest.raises(UserError, match="pass aligned REF"):
        resolve_target(whole, "delta")
    with pytest.raises(UserError, match="no adapter to repair"):
        resolve_target(whole, "adapter")
    with pytest.raises(UserError, match="leave aligned out"):
        resolve_target(adapted, aligned=str(folders.base))


def rows() -> list[TokenizedRow]:
    return [TokenizedRow([5, 6, 7, 8], 2), TokenizedRow([9, 10], 1)]


def test_modules_that_share_a_matrix_are_one_site_with_the_sum_of_both_uses(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base")
    opened = load_model(str(base))
    first, second = (opened.causal_model.model.layers[i].mlp.up_proj for i in range(2))
    second.weight = first.weight
    sites = weight_sites(opened.causal_model, opened.base, "up_proj")
    assert [site.name for site in sites] == ["model.layers.0.mlp.up_proj"]
    assert sites[0].observed == (first, second)

    wanted = torch.zeros(32).double()

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        wanted.add_(args[0][0].double().square().sum(dim=0))

    moments = collect(opened, rows(), CalibrationSettings(), sites=sites, cache=False)
    handles = [module.register_forward_pre_hook(add) for module in (first, second)]
    with torch.no_grad():
        for row in rows():
            opened.model(torch.tensor([row.input_ids]))
    for handle in handles:
        handle.remove()
    assert torch.allclose(moments.sites[sites[0].name].sum_squares_I, wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"vocab_size": tiny.VOCABULARY_SIZE, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    return write_random(tmp_path_factory.mktemp("moe") / "mixtral", config_of("mixtral", **sizes, **heads))


@pytest.mark.parametrize(("pattern", "beside"), [("all", 4), ("mlp", 0)])
def test_every_matrix_of_fused_experts_is_covered(mixtral: Path, pattern: str, beside: int) -> None:
    target = resolve_target(load_model(str(mixtral)), "weight", pattern=pattern)
    assert len(target.sites) == 2 * (4 * 3 + beside)


def test_the_attention_next_to_fused_experts_is_covered(mixtral: Path, tmp_path: Path) -> None:
    tuned = write_fine_tune(tmp_path / "tuned", mixtral)
    opened = load_model(str(tuned))
    target = resolve_target(opened, aligned=str(mixtral), pattern="attention")
    assert len(target.sites) == 2 * 4
    assert any("experts" in tensor.key for tensor in target.outside)
    moments = collect(opened, rows(), sites=target.sites, cache=False)
    assert moments.sites.keys() == {site.name for site in target.sites}


def test_a_file_that_the_library_converts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = load_model(str(tiny.write_model(tmp_path / "base")))
    projection = opened.causal_model.model.layers[1].self_attn.q_proj
    projection.weight[-1] += 1
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.weight is not what the model computes with"):
        resolve_target(opened, "weight")


def test_replacing_the_weights_of_a_model_frees_its_memory(folders: Folders, tuned: Path) -> None:
    opened = load_model(str(tuned))
    target = resolve_target(opened, aligned=str(folders.base))
    ids = torch.arange(5, 15).reshape(1, 10)
    exchanged = opened.with_weights(open_model_checkpoint(str(folders.base)))
    wanted = AutoModelForCausalLM.from_pretrained(folders.base)(ids).logits
    assert torch.equal(exchanged.model(ids).logits, wanted)
    assert exchanged.tokenizer is not None
    # Sites still know the modules that they were found in.
    assert all(module.get_parameter("weight").is_meta for site in target.sites for module in site.observed)
