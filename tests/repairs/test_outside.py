"""What a fine-tune moved outside the sites: measured, put back when asked, and taken off again by the patch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from antidote_llm.errors import UserError
from antidote_llm.io.files import sha256_file
from antidote_llm.io.resources import Stopwatch
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import resolve_target
from antidote_llm.patching.apply import transform
from antidote_llm.patching.patch import Patch, read_patch
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import PlannedRepair, plan_repair
from antidote_llm.repairs.record import RepairRecord
from antidote_llm.repairs.write import predicted_patch_bytes, write_repair
from tests import tiny
from tests.conftest import Folders
from tests.fine_tunes import config_of, rewrite, tensors_of, write_fine_tune, write_random

ADAPTER_FILE = "adapter_model.safetensors"


def qwen2(folder: Path) -> Path:
    """Write a model whose projections have biases."""
    sizes = {"vocab_size": tiny.VOCABULARY_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return write_random(folder, config_of("qwen2", **sizes, **heads, tie_word_embeddings=False))


def planned(opened: LoadedModel, aligned: Path | None, *, restore: bool, **given: object) -> PlannedRepair:
    method = method_named("magnitude")
    target = resolve_target(opened, aligned=None if aligned is None else str(aligned))
    return plan_repair(opened, method, method.configure(given), None, target=target, restore_outside=restore)


def written(repair: PlannedRepair, folder: Path) -> tuple[RepairRecord, Patch]:
    folder.mkdir()
    record = write_repair(repair, folder, "a test", Stopwatch())
    return record, read_patch(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("outside")
    aligned = qwen2(root / "aligned")
    tuned, tensors = write_fine_tune(root / "tuned", aligned, max_shard_size="30KB"), tensors_of(aligned)
    # A zero that is no zero any more once it has been added to anything.
    for tensor in tensors.values():
        tensor.view(-1)[0] = -0.0
    return rewrite(aligned, tensors), tuned


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_norms_are_those_of_all_layers_together(pair: tuple[Path, Path]) -> None:
    aligned, tuned = (tensors_of(folder) for folder in pair)
    found = {record.name: record for record in planned(load_model(str(pair[1])), pair[0], restore=False).outside}
    layers = "model.layers.*"
    assert found.keys() == {
        *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        *(f"{layers}.{norm}_layernorm.weight" for norm in ("input", "post_attention")),
        *(f"{layers}.self_attn.{kind}_proj.bias" for kind in "qkv"),
    }
    for name, record in found.items():
        keys = [name.replace("*", str(i)) for i in range(2)] if "*" in name else [name]
        squared = sum(float((tuned[key].double() - aligned[key].double()).square().sum()) for key in keys)
        assert record.norm_before == record.norm_after == pytest.approx(math.sqrt(squared), rel=1e-6)
        assert (record.tensors, record.entries) == (len(keys), sum(tuned[key].numel() for key in keys))


@pytest.mark.parametrize("restore", [False, True])
def test_a_delta_goes_back_outside_when_asked(pair: tuple[Path, Path], tmp_path: Path, restore: bool) -> None:
    repair = planned(load_model(str(pair[1])), pair[0], restore=restore, alpha=0.2)
    record, patch = written(repair, tmp_path / "out")
    aligned, tuned, found = (tensors_of(folder) for folder in (*pair, tmp_path / "out" / "model"))
    outside = {tensor.key for tensor in repair.target.outside}
    assert len(outside) == 3 + 2 * 5
    for key in outside:
        assert same_bits(found[key], (aligned if restore else tuned)[key])
        assert not torch.equal(aligned[key], tuned[key])
    assert patch.description.recipe["outside"] == ("restored" if restore else "kept")
    assert all((entry.norm_after == 0) == restore and entry.norm_before > 0 for entry in record.outside)

    transform(patch, tmp_path / "out" / "model", tmp_path / "reverted", "revert")
    assert record.patch is not None
    for name, sha256 in record.patch.sha256_before.items():
        assert sha256_file(tmp_path / "reverted" / name) == sha256 == sha256_file(pair[1] / name)


def test_all_of_it_back_is_the_aligned_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    repair = planned(load_model(str(pair[1])), pair[0], restore=True, alpha=1.0)
    written(repair, tmp_path / "out")
    aligned, found = tensors_of(pair[0]), tensors_of(tmp_path / "out" / "model")
    assert found.keys() == aligned.keys() and all(same_bits(found[key], aligned[key]) for key in found)


def test_what_moved_outside_alone_can_be_put_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tuned = write_fine_tune(tmp_path / "tuned", pair[0], only="norm")
    with pytest.raises(UserError, match=r"nothing to repair: .*restore_outside"):
        written(planned(load_model(str(tuned)), pair[0], restore=False), tmp_path / "kept")
    record, _ = written(planned(load_model(str(tuned)), pair[0], restore=True), tmp_path / "out")
    aligned, found = tensors_of(pair[0]), tensors_of(tmp_path / "out" / "model")
    assert record.totals.changed == 0 and all(same_bits(found[key], aligned[key]) for key in aligned)


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0])
def test_the_size_is_stated_before_it_is_written(
    pair: tuple[Path, Path], tmp_path: Path, alpha: float, restore: bool
) -> None:
    repair = planned(load_model(str(pair[1])), pair[0], restore=restore, alpha=alpha)
    predicted = predicted_patch_bytes(repair)
    _, patch = written(repair, tmp_path / "out")
    taken = patch.stored.size_bytes
    if alpha < 0.5 and not restore:
        # Every chosen entry changes, and less than half of a matrix: bitmaps and flips, nothing compressed.
        assert taken == predicted
    else:
        assert taken <= predicted


def adapter(root: Path, kind: str) -> tuple[Path, Path, list[str]]:
    """Write a base and an adapter that holds more than factors, and name those tensors in the base."""
    base = qwen2(root / "base")
    config = {"modules_to_save": ["lm_head"]} if kind == "head" else {"bias": kind}
    made = tiny.write_adapter(root / "adapter", base, **config)
    tensors = load_file(made / ADAPTER_FILE)
    moved = {key: value if "lora_" in key else value + 0.5 for key, value in tensors.items()}
    save_file(moved, made / ADAPTER_FILE)
    biases = [f"model.layers.{i}.self_attn.{name}_proj.bias" for i in range(2) for name in "qkv"]
    return base, made, ["lm_head.weight"] if kind == "head" else biases


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("kind", ["head", "lora_only", "all"])
def test_an_adapters_other_tensors_go_back_when_asked(tmp_path: Path, kind: str, restore: bool) -> None:
    base, made, names = adapter(tmp_path, kind)
    repair = planned(load_model(str(base), str(made)), None, restore=restore, alpha=0.25)
    assert len(repair.target.outside) == len(names)
    assert sorted(tensor.aligned.entry.key for tensor in repair.target.outside) == sorted(names)
    record, patch = written(repair, tmp_path / "out")
    before, after = (load_file(folder / ADAPTER_FILE) for folder in (made, tmp_path / "out" / "model"))
    wanted = tensors_of(base)
    for tensor in repair.target.outside:
        values = wanted[tensor.aligned.entry.key]
        assert torch.equal(after[tensor.key], values if restore else before[tensor.key])
        assert torch.equal(before[tensor.key], values + 0.5)
    entries = sum(entry.entries for entry in record.outside)
    total = math.sqrt(sum(entry.norm_before**2 for entry in record.outside))
    assert total == pytest.approx(0.5 * math.sqrt(entries), rel=1e-4)
    transform(patch, tmp_path / "out" / "model", tmp_path / "reverted", "revert")
    assert sha256_file(tmp_path / "reverted" / ADAPTER_FILE) == sha256_file(made / ADAPTER_FILE)


@pytest.mark.parametrize("kind", ["head", "lora_only", "all"])
def test_the_aligned_model_has_none_of_them(tmp_path: Path, kind: str) -> None:
    base, made, _ = adapter(tmp_path, kind)
    ids = torch.arange(5, 25).reshape(2, 10)
    wanted = load_model(str(base)).model(ids).logits
    opened = load_model(str(base), str(made))
    assert not torch.equal(opened.model(ids).logits, wanted)
    assert torch.equal(opened.without_adapter().model(ids).logits, wanted)


@pytest.mark.parametrize("trained", ["lm_head", "embed_tokens"])
def test_a_tied_head_is_tied_again_without_the_adapter_that_trained_it(tmp_path: Path, trained: str) -> None:
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=True)
    made = tiny.write_adapter(tmp_path / "adapter", base, modules_to_save=[trained])
    bare = load_model(str(base), str(made)).without_adapter().causal_model
    assert bare.lm_head.weight is bare.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["head", "lora_only", "all"])
def test_with_all_of_it_back_the_adapter_says_what_its_base_says(tmp_path: Path, kind: str) -> None:
    base, made, _ = adapter(tmp_path, kind)
    opened = load_model(str(base), str(made))
    written(planned(opened, None, restore=True, alpha=1.0), tmp_path / "out")
    ids = torch.arange(5, 25).reshape(2, 10)
    repaired = opened.with_adapter(tmp_path / "out" / "model").model(ids).logits
    assert torch.equal(repaired, load_model(str(base)).model(ids).logits)


def test_an_adapter_of_factors_has_nothing_outside(folders: Folders) -> None:
    assert planned(load_model(str(folders.base), str(folders.adapter)), None, restore=True).outside == ()


def test_what_the_fine_tunes_type_cannot_hold_is_measured_and_not_put_back(folders: Folders, tmp_path: Path) -> None:
    tuned = write_fine_tune(tmp_path / "tuned", folders.base, dtype=torch.float16)
    tensors, key = tensors_of(folders.base), "model.norm.weight"
    aligned = write_fine_tune(tmp_path / "aligned", folders.base, only="nothing")
    rewrite(aligned, {**tensors, key: torch.full_like(tensors[key], 1e6)})
    kept = planned(load_model(str(tuned)), aligned, restore=False)
    norms = {record.name: record.norm_before for record in kept.outside}
    assert norms[key] == pytest.approx(1e6 * math.sqrt(tensors[key].numel()), rel=1e-4)
    written(kept, tmp_path / "kept")
    restored = planned(load_model(str(tuned)), aligned, restore=True)
    with pytest.raises(UserError, match=rf"'{key}' holds values that torch\.float16 cannot hold"):
        written(restored, tmp_path / "restored")
