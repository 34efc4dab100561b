"""A fine-tune and its aligned model: which tensors belong together, however files hold them, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from antidote_llm.errors import UserError
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.tally import outside_records
from tests import tiny
from tests.architectures import write_checkpoint
from tests.conftest import Folders
from tests.fine_tunes import config_of, rewrite, tensors_of, write_fine_tune, write_random


@pytest.fixture(scope="module")
def tuned(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fine_tune(tmp_path_factory.mktemp("tuned") / "tuned", folders.base)


def gpt2(folder: Path) -> Path:
    sizes = {"vocab_size": tiny.VOCABULARY_SIZE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return write_random(folder, config_of("gpt2", **sizes, bos_token_id=0, eos_token_id=3))


@pytest.mark.parametrize("twice", ["aligned", "tuned", "both"])
def test_a_tied_head_is_measured_once_and_restored_under_each_name(tmp_path: Path, twice: str) -> None:
    aligned = tiny.write_model(tmp_path / "aligned", tie_word_embeddings=True)
    tuned = write_fine_tune(tmp_path / "tuned", aligned)
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    was, tensors = tensors_of(aligned)[table], tensors_of(tuned)
    # Under both of its names, as some save it.
    for folder in (aligned, tuned):
        if twice in (folder.name, "both"):
            both = tensors_of(folder)
            rewrite(folder, {**both, head: both[table].clone()})
    target = resolve_target(load_model(str(tuned)), aligned=str(aligned))
    records = outside_records(target.outside, restored=False)
    tables = [record for record in records if "embed" in record.name or "head" in record.name]
    assert [(record.name, record.tensors) for record in tables] == [(table, 1)]
    assert tables[0].norm_before == pytest.approx(float((tensors[table] - was).norm()), rel=1e-6)
    back = {tensor.key: tensor.aligned_values() for tensor in target.outside}
    for key in (table, head) if twice in ("tuned", "both") else (table,):
        assert torch.equal(back[key], was)


def test_one_tensor_cannot_be_restored_to_two(tmp_path: Path) -> None:
    aligned = tiny.write_model(tmp_path / "aligned", tie_word_embeddings=False)
    tuned = tiny.write_model(tmp_path / "tuned", tie_word_embeddings=True, seed=3)
    with pytest.raises(UserError, match=r"aligned: lm_head\.weight is another tensor than .*untie it there"):
        resolve_target(load_model(str(tuned)), aligned=str(aligned))
    # The other way round each of them has something to go back to.
    target = resolve_target(load_model(str(aligned)), aligned=str(tuned))
    table = tensors_of(tuned)["model.embed_tokens.weight"]
    back = {tensor.key: tensor.aligned_values() for tensor in target.outside}
    assert torch.equal(back["lm_head.weight"], table) and torch.equal(back["model.embed_tokens.weight"], table)


def test_the_aligned_model_may_be_split_otherwise(folders: Folders, tuned: Path, tmp_path: Path) -> None:
    sharded = write_fine_tune(tmp_path / "sharded", folders.base, only="nothing", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    wanted = tensors_of(folders.base)
    for one, other in ((tuned, sharded), (sharded, tuned)):
        target = resolve_target(load_model(str(one)), aligned=str(other))
        values = wanted if other is sharded else tensors_of(tuned)
        for site in target.sites:
            reference = target.reference(site)
            assert reference is not None and torch.equal(reference, values[site.key])


@pytest.mark.parametrize("without", ["aligned", "tuned", "both"])
def test_names_may_leave_out_the_prefix(tmp_path: Path, without: str) -> None:
    folders = {"aligned": gpt2(tmp_path / "aligned")}
    folders["tuned"] = write_fine_tune(tmp_path / "tuned", folders["aligned"])
    wanted = {name.removeprefix("transformer."): value for name, value in tensors_of(folders["aligned"]).items()}
    for name, folder in folders.items():
        prefix = "" if without in (name, "both") else "transformer."
        rewrite(folder, {prefix + key.removeprefix("transformer."): v for key, v in tensors_of(folder).items()})
    target = resolve_target(load_model(str(folders["tuned"])), aligned=str(folders["aligned"]))
    assert len(target.sites) == 2 * 4
    for site in target.sites:
        assert site.key.startswith("h.") == (without in ("tuned", "both"))
        reference = target.reference(site)
        assert reference is not None
        assert torch.equal(reference, wanted[site.key.removeprefix("transformer.")].T)


def assert_same_whichever_is_aligned(one: Path, other: Path, keys: Collection[str]) -> None:
    for tuned, aligned in ((one, other), (other, one)):
        target = resolve_target(load_model(str(tuned)), aligned=str(aligned))
        assert {site.key for site in target.sites} | {tensor.key for tensor in target.outside} == set(keys)


@pytest.mark.parametrize(
    ("kind", "attention"), [("gpt2", "transformer.h.{}.attn"), ("gpt_neox", "gpt_neox.layers.{}.attention")]
)
def test_constants_that_older_versions_saved_are_no_difference(tmp_path: Path, kind: str, attention: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = config_of(kind, vocab_size=tiny.VOCABULARY_SIZE, **sizes, bos_token_id=0, eos_token_id=3)
    aligned = write_random(tmp_path / "aligned", config)
    tuned = write_fine_tune(tmp_path / "tuned", aligned)
    mask = torch.ones(64, 64, dtype=torch.bool).tril().reshape(1, 1, 64, 64)
    constants = {f"{attention.format(i)}.bias": mask.clone() for i in range(2)}
    # In half precision it is minus infinity.
    constants |= {f"{attention.format(i)}.masked_bias": torch.tensor(-1e9).half() for i in range(2)}
    constants |= {f"{attention.format(i)}.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    old = rewrite(Path(shutil.copytree(aligned, tmp_path / "old")), {**tensors_of(aligned), **constants})
    assert_same_whichever_is_aligned(tuned, old, tensors_of(aligned))


def test_layers_that_the_model_ignores_are_no_difference(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tuned", "deepseek_v3", tuned=True)
    aligned = write_checkpoint(tmp_path / "aligned", "deepseek_v3")
    # Those that predict further tokens, which transformers neither loads nor saves.
    more = {"model.layers.61.eh_proj.weight": torch.ones(4, 8)}
    full = rewrite(Path(shutil.copytree(aligned, tmp_path / "full")), {**tensors_of(aligned), **more})
    assert_same_whichever_is_aligned(folder, full, tensors_of(aligned))


def test_an_aligned_model_of_another_vocabulary_is_refused(tuned: Path, tmp_path: Path) -> None:
    other = tiny.write_model(tmp_path / "other", vocab_size=tiny.VOCABULARY_SIZE + 1)
    said = r"other: \w+\S+ is 36 x 32, in .*tuned it is 35 x 32.*another vocabulary: .*resize_token_embeddings"
    with pytest.raises(UserError, match=said):
        resolve_target(load_model(str(tuned)), aligned=str(other))
    wider = tiny.write_model(tmp_path / "wider", intermediate_size=64)
    with pytest.raises(UserError, match=r"another shape: name the one that the fine-tune started from$"):
        resolve_target(load_model(str(tuned)), aligned=str(wider))


def test_a_tensor_that_one_of_the_two_lacks_is_named(folders: Folders, tuned: Path, tmp_path: Path) -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    lacking = Path(shutil.copytree(folders.base, tmp_path / "lacking"))
    tensors = tensors_of(lacking)
    rewrite(lacking, {name: value for name, value in tensors.items() if name != key})
    with pytest.raises(UserError, match=f"lacking: no {key}, which .*: an aligned model of another shape"):
        resolve_target(load_model(str(tuned)), aligned=str(lacking))
    deeper = tiny.write_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"tuned: no model\.layers\.2\.\S+, which .*deeper has"):
        resolve_target(load_model(str(tuned)), aligned=str(deeper))


def test_a_bias_that_only_looks_like_a_mask_is_missed(tmp_path: Path) -> None:
    aligned = gpt2(tmp_path / "aligned")
    tuned, key = write_fine_tune(tmp_path / "tuned", aligned), "transformer.h.1.attn.c_attn.bias"
    rewrite(aligned, {name: value for name, value in tensors_of(aligned).items() if name != key})
    with pytest.raises(UserError, match=f"aligned: no {key}, which .*tuned has"):
        resolve_target(load_model(str(tuned)), aligned=str(aligned))
