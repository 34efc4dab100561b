"""Any folder of a causal language model opens, whole or sharded, and names its sites in network order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from antidote_llm.calibration.collect import collect
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.errors import UserError
from antidote_llm.io.files import sha256_file
from antidote_llm.models.checkpoint import is_adapter, locate, open_adapter_checkpoint, open_model_checkpoint
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import resolve_target
from tests import tiny
from tests.cli.command import edit_json
from tests.conftest import Folders
from tests.fine_tunes import write_fine_tune


def logits(opened: LoadedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = opened.model(torch.arange(5, 25).reshape(2, 10)).logits
    return found


@pytest.fixture(scope="module")
def sharded(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "base"
    AutoModelForCausalLM.from_pretrained(folders.base).save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    return folder


def test_shards_are_one_model(folders: Folders, sharded: Path) -> None:
    opened = load_model(str(sharded))
    assert len(opened.base.weights) > 2
    assert torch.equal(logits(opened), logits(load_model(str(folders.base))))
    assert opened.base.sha256.keys() == {*(path.name for path in sharded.glob("*.safetensors")), "config.json"}


def test_hashes_are_those_of_the_files(folders: Folders) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    assert opened.adapter is not None
    for checkpoint in (opened.base, opened.adapter):
        assert len(checkpoint.sha256) == 2
        for name, sha256 in checkpoint.sha256.items():
            assert sha256_file(checkpoint.folder / name) == sha256


def test_a_tokenizer_is_optional(folders: Folders, sharded: Path) -> None:
    assert load_model(str(sharded)).tokenizer is None
    assert load_model(str(folders.base)).tokenizer is not None
    elsewhere = load_model(str(sharded), tokenizer=str(folders.base)).tokenizer
    assert elsewhere is not None and len(elsewhere) == tiny.VOCABULARY_SIZE


def test_the_adapters_tokenizer_comes_first(folders: Folders, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    own = tiny.tokenizer()
    own.chat_template = "own"
    own.save_pretrained(adapter)
    tokenizer = load_model(str(folders.base), str(adapter)).tokenizer
    assert tokenizer is not None and tokenizer.chat_template == "own"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_auto_is_the_checkpoints_own_dtype(tmp_path: Path, dtype: str) -> None:
    wanted: torch.dtype = getattr(torch, dtype)
    base = tiny.write_model(tmp_path / "base", dtype=wanted)
    assert load_model(str(base)).dtype == wanted
    assert load_model(str(base), dtype="float64").dtype == torch.float64


def test_sites_are_every_factor_in_network_order(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base", num_hidden_layers=11)
    adapter = tiny.write_adapter(tmp_path / "adapter", base, targets=("q_proj", "down_proj"), rank=2)
    sites = load_model(str(base), str(adapter)).sites
    assert [site.layer for site in sites] == sorted(4 * list(range(11)))
    assert [(site.kind, site.role) for site in sites[-4:]] == [
        ("down_proj", "lora_A"),
        ("down_proj", "lora_B"),
        ("q_proj", "lora_A"),
        ("q_proj", "lora_B"),
    ]
    for site in sites:
        assert site.name == f"{site.module}.{site.role}"
        assert site.shape[0 if site.role == "lora_A" else 1] == 2


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, {"q_proj": 2.0, "v_proj": 2.0}),
        ({"use_rslora": True}, {"q_proj": 16 / 8**0.5, "v_proj": 16 / 8**0.5}),
        ({"rank_pattern": {"v_proj": 4}}, {"q_proj": 2.0, "v_proj": 4.0}),
        ({"alpha_pattern": {"q_proj": 40}}, {"q_proj": 5.0, "v_proj": 2.0}),
    ],
)
def test_sites_know_their_scaling(
    folders: Folders, tmp_path: Path, config: dict[str, Any], wanted: dict[str, float]
) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", folders.base, targets=("q_proj", "v_proj"), **config)
    opened = load_model(str(folders.base), str(adapter))
    modules = dict(opened.model.named_modules())
    for site in opened.sites:
        assert site.scaling == pytest.approx(wanted[site.kind])
        if site.role == "lora_A":
            layer = modules[f"base_model.model.{site.module}"]
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert torch.allclose(site.scaling * (b @ a), layer.get_delta_weight("default"), atol=1e-6)


def test_an_adapter_alone_opens_its_base(folders: Folders) -> None:
    alone = load_model(str(folders.adapter))
    assert alone.base.folder == folders.base
    assert torch.equal(logits(alone), logits(load_model(str(folders.base), str(folders.adapter))))


def test_an_adapter_with_the_bases_configuration_in_its_folder_is_still_an_adapter(
    folders: Folders, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    shutil.copy(folders.base / "config.json", adapter)
    assert is_adapter(adapter) and is_adapter(folders.adapter)
    assert not is_adapter(folders.base)
    assert load_model(str(adapter)).base.folder == folders.base


def test_a_base_that_was_moved_is_compared_by_its_weights(folders: Folders, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folders.base, tmp_path / "moved"))
    assert load_model(str(moved), str(folders.adapter)).sites
    other = tiny.write_model(tmp_path / "other", seed=3)
    with pytest.raises(UserError, match="another base"):
        load_model(str(other), str(folders.adapter))


def test_an_adapter_can_be_replaced_and_removed(folders: Folders, tmp_path: Path) -> None:
    other = tiny.write_adapter(tmp_path / "other", folders.base, seed=7)
    wanted = [logits(load_model(str(folders.base), str(other))), logits(load_model(str(folders.base)))]
    opened = load_model(str(folders.base), str(folders.adapter)).with_adapter(other)
    assert torch.equal(logits(opened), wanted[0])
    assert opened.adapter is not None and opened.adapter.folder == other
    assert all(set(site.observed) <= set(opened.model.modules()) for site in opened.sites)
    assert torch.equal(logits(opened.without_adapter()), wanted[1])


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_a_module_that_was_trained_whole_goes_with_its_adapter(folders: Folders, tmp_path: Path, module: str) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", folders.base, modules_to_save=[module])
    file = adapter / "adapter_model.safetensors"
    save_file({key: weight + (module in key) for key, weight in load_file(file).items()}, file)
    opened = load_model(str(folders.base), str(adapter))
    attacked = logits(opened)
    opened = opened.with_adapter(adapter)
    assert torch.equal(logits(opened), attacked)
    assert torch.equal(logits(opened.without_adapter()), logits(load_model(str(folders.base))))


def test_nothing_in_an_open_model_is_trained(folders: Folders) -> None:
    opened = load_model(str(folders.base), str(folders.adapter))
    assert not opened.model.training
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())


def test_positions_and_vocabulary(folders: Folders) -> None:
    opened = load_model(str(folders.base))
    assert (opened.positions, opened.vocabulary_size) == (128, tiny.VOCABULARY_SIZE)


def test_an_empty_quantisation_entry_is_no_quantisation(folders: Folders, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders.base, tmp_path / "base"))
    edit_json(base / "config.json", quantization_config=None)
    assert open_model_checkpoint(str(base)).config["quantization_config"] is None
    assert load_model(str(base)).sites == ()


def test_a_tensor_in_two_files_is_refused(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "twice"))
    first, last, *_ = sorted(folder.glob("*.safetensors"))
    key, value = next(iter(load_file(first).items()))
    save_file({**load_file(last), key: value + 1}, last)
    with pytest.raises(UserError, match=rf"twice: '{key}' is in {first.name} and in {last.name}.*keep one"):
        load_model(str(folder))


def test_a_named_base_that_cannot_be_opened_is_ignored(folders: Folders, tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    shutil.copy(folders.base / "config.json", named)
    (named / "pytorch_model.bin").write_bytes(b"a pickle")
    adapter = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(named))
    assert load_model(str(folders.base), str(adapter)).sites
    with pytest.raises(UserError, match="only pickled weights"):
        load_model(str(adapter))


def test_a_base_that_was_saved_again_counts_as_the_same(folders: Folders, tmp_path: Path) -> None:
    again = Path(shutil.copytree(folders.base, tmp_path / "again"))
    file = again / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "saved": "again"})
    assert sha256_file(file) != sha256_file(folders.base / file.name)
    assert load_model(str(again), str(folders.adapter)).sites


class Hub:
    """A Hub whose names mean another folder from the second time on."""

    def __init__(self, **folders: Path) -> None:
        self.folders = folders
        self.asked: dict[str, list[str]] = {}

    def __call__(self, name: str, *, allow_patterns: list[str]) -> str:
        if name in self.asked:
            raise OSError(f"{name} has moved")
        self.asked[name] = allow_patterns
        return str(self.folders[name])


@pytest.fixture
def hub(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.chdir(tmp_path)
    made = Hub(aligned=folders.base, adapter=folders.adapter, tuned=write_fine_tune(tmp_path / "t", folders.base))
    monkeypatch.setattr("huggingface_hub.snapshot_download", made)
    return made


def test_every_name_on_the_hub_is_resolved_once(hub: Hub) -> None:
    opened = load_model("tuned")
    target = resolve_target(opened, aligned="aligned")
    assert target.aligned is not None
    exchanged = opened.with_weights(target.aligned)
    assert (exchanged.base.reference, exchanged.base.folder) == ("aligned", hub.folders["aligned"])
    alone = load_model("adapter")
    assert alone.adapter is not None and alone.adapter.reference == "adapter"
    assert hub.asked.keys() == {"tuned", "aligned", "adapter"}


def test_code_is_fetched_where_it_is_trusted(hub: Hub) -> None:
    load_model("tuned")
    resolve_target(load_model(str(hub.folders["tuned"]), trust_remote_code=True), aligned="aligned")
    assert "*.py" in hub.asked["aligned"] and "*.py" not in hub.asked["tuned"]
    assert {"LICENSE*", "NOTICE*", "*.tiktoken"} <= set(hub.asked["tuned"])


def test_weights_that_changed_meanwhile_do_not_replace_others(folders: Folders, tmp_path: Path) -> None:
    changing = Path(shutil.copytree(folders.base, tmp_path / "changing"))
    checkpoint = open_model_checkpoint(str(changing))
    edit_json(changing / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(UserError, match="changed while it was read"):
        load_model(str(folders.base)).with_weights(checkpoint)


def test_layers_spread_over_devices_give_the_same_statistics(folders: Folders) -> None:
    """Where there is one device, all layers lie on it, placed by accelerate."""
    rows = [TokenizedRow([5, 6, 7, 8], 0), TokenizedRow([9, 10], 0)]
    found = [
        collect(load_model(str(folders.base), str(folders.adapter), device=device), rows, cache=False)
        for device in ("cpu", "spread")
    ]
    for name, moments in found[0].sites.items():
        assert torch.equal(moments.sum_squares_I, found[1].sites[name].sum_squares_I)


def test_links_out_of_a_folder_are_refused_before_anything_in_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "NOTICE").symlink_to(tmp_path)
    for find in (locate, open_model_checkpoint, open_adapter_checkpoint):
        with pytest.raises(UserError, match=r"NOTICE: a link to .*, a folder that it is in itself"):
            find(str(tmp_path / "model"))
