"""An adapter's tensors under other names: what peft reads is read, to the same logits; what it leaves out is named.

peft itself says which is which: it loads every case, and either answers as with the names of its own, or does not.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)

from antidote_llm.errors import UserError
from antidote_llm.models.adapter import ADAPTER_FILE
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from tests import tiny
from tests.cli.command import edit_json
from tests.conftest import Folders
from tests.models.test_multimodal import write_gemma3

Rename: TypeAlias = Callable[[str], str]
IDS = torch.arange(5, 15)[None]
PREFIX = "base_model.model."
OLD_GEMMA = ("model.model.language_model.", "model.language_model.model.")
OLD_TOWER = ("model.model.vision_tower.", "model.vision_tower.vision_model.")
NAMES: dict[str, Rename] = {
    "compiled outside": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "every layer compiled": lambda key: key.replace(".self_attn", "._orig_mod.self_attn"),
    "parallel outside": lambda key: f"module.{key}",
    "parallel inside": lambda key: key.replace(PREFIX, f"{PREFIX}module."),
    "fsdp": lambda key: key.replace(PREFIX, f"{PREFIX}_fsdp_wrapped_module."),
    "prefix twice": lambda key: PREFIX + key,
    "prefix three times": lambda key: PREFIX * 2 + key,
    "no prefix": lambda key: key.removeprefix(PREFIX),
    "half a prefix": lambda key: "base_model." + key.removeprefix(PREFIX),
    "without the model's own": lambda key: key.replace(f"{PREFIX}model.", PREFIX),
    "named as in memory": lambda key: key.replace(".weight", ".default.weight"),
    "another adapter's name": lambda key: key.replace(".weight", ".mine.weight"),
    "without weight": lambda key: key.removesuffix(".weight"),
    "before transformers 4.52": lambda key: key.replace(*OLD_GEMMA),
    "with its tower": lambda key: key.replace(*OLD_GEMMA).replace(*OLD_TOWER),
}


def with_peft(base: Path, adapter: Path) -> Tensor:
    """Return what peft itself makes of an adapter."""
    with torch.no_grad():
        found: Tensor = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(IDS).logits
    return found


@torch.no_grad()
def bare(base: Path) -> Tensor:
    found: Tensor = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    return found


def opened(base: Path, adapter: Path) -> Tensor:
    """Return what this package makes of it."""
    with torch.no_grad():
        found: Tensor = load_model(str(base), str(adapter)).model(IDS).logits
    return found


def renamed(adapter: Path, folder: Path, rename: Rename) -> Path:
    shutil.copytree(adapter, folder)
    file = folder / ADAPTER_FILE
    save_file({rename(key): value for key, value in load_file(file).items()}, file)
    return folder


def write_mixtral(folder: Path) -> Path:
    sizes = {"vocab_size": tiny.VOCABULARY_SIZE, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("pairs")
    bases = {
        "llama": tiny.write_model(root / "llama"),
        "gemma3": write_gemma3(root / "gemma3", vision_layers=1),
        "mixtral": write_mixtral(root / "mixtral"),
    }
    return {name: (base, tiny.write_adapter(root / f"{name} adapter", base)) for name, base in bases.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mixtral"])
def test_names_are_read_as_peft_reads_them_or_named(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str, name: str
) -> None:
    base, plain = pairs[kind]
    adapter = renamed(plain, tmp_path / "adapter", NAMES[name])
    wanted = with_peft(base, plain)
    if torch.equal(with_peft(base, adapter), wanted):
        assert torch.equal(opened(base, adapter), wanted)
        assert {site.key for site in load_model(str(base), str(adapter)).sites} <= load_file(
            adapter / ADAPTER_FILE
        ).keys()
        return
    with pytest.raises(UserError, match="peft would leave out") as caught:
        opened(base, adapter)
    found = re.search(r"leave out '(.+?)', .* it must be '(.+?)': rename", str(caught.value))
    assert found is not None and "merge" not in str(caught.value)
    assert NAMES[name](found[2]) == found[1] and found[2] in load_file(plain / ADAPTER_FILE)


def test_peft_reads_some_of_these_names(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """What is assumed of peft: names of before, and such that lack the prefix, where it converts a model's names."""
    base, plain = pairs["gemma3"]
    for name in ("before transformers 4.52", "no prefix", "named as in memory"):
        adapter = renamed(plain, tmp_path / name, NAMES[name])
        assert torch.equal(with_peft(base, adapter), with_peft(base, plain))


@pytest.mark.parametrize("layers_on_disk", [False, True])
def test_old_names_are_read_in_both_engines(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, layers_on_disk: bool
) -> None:
    base, plain = pairs["gemma3"]
    adapter = renamed(plain, tmp_path / "adapter", NAMES["before transformers 4.52"])
    found = [load_model(str(base), str(each), layers_on_disk=layers_on_disk) for each in (plain, adapter)]
    assert [site.module for site in found[0].sites] == [site.module for site in found[1].sites]
    states = [
        {name: value for name, value in each.model.state_dict().items() if "lora_" in name and not value.is_meta}
        for each in found
    ]
    assert states[0] and states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_an_adapter_under_another_is_not_read_by_the_others_name(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    base, plain = pairs["llama"]
    adapter = renamed(plain, tmp_path / "adapter", NAMES["named as in memory"])
    top = tiny.write_adapter(tmp_path / "top", base, seed=7)
    assert torch.equal(opened(base, adapter), with_peft(base, plain))
    with pytest.raises(UserError, match=r"leave out .*lora_A\.default\.weight.* it must be '.*lora_A\.weight'"):
        load_model(str(base), str(top), lower_adapters=[str(adapter)])


def text_part(folder: Path, whole: Path) -> Path:
    """Write the text part of a Gemma 3 by itself."""
    model = Gemma3ForConditionalGeneration.from_pretrained(whole)
    text = Gemma3ForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.get_decoder().state_dict())
    text.save_pretrained(folder)
    return folder


def test_an_adapter_of_a_vision_language_model_is_not_one_of_its_text_part(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    whole, _ = pairs["gemma3"]
    text = text_part(tmp_path / "text", whole)
    for trained, other, kind in ((whole, text, "the vision-language model"), (text, whole, "the text model alone")):
        adapter = tiny.write_adapter(tmp_path / f"of {trained.name}", trained, targets=("o_proj",))
        edit_json(adapter / "adapter_config.json", base_model_name_or_path="somebody/base")
        assert not torch.equal(with_peft(trained, adapter), bare(trained))
        assert torch.equal(with_peft(other, adapter), bare(other))
        with pytest.raises(UserError, match=f"an adapter of {kind}.*name the model that it was trained on"):
            opened(other, adapter)


def test_a_module_trained_whole_under_an_old_name_is_named(folders: Folders, tmp_path: Path) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", folders.base, modules_to_save=["lm_head"])
    renamed_head = renamed(adapter, tmp_path / "renamed", lambda key: key.replace(f"{PREFIX}lm_head", "lm_head"))
    with pytest.raises(UserError, match=rf"lacks '{PREFIX}lm_head\.weight'.*rename 'lm_head\.weight' so"):
        opened(folders.base, renamed_head)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace("lm_head.", "lm_head.modules_to_save.default."),
        lambda key: key.replace("lm_head.", "lm_head.original_module."),
        lambda key: f"_orig_mod.{key}" if "lora_" not in key else key,
        lambda key: key.replace(f"{PREFIX}lm_head", f"{PREFIX}text_model.lm_head"),
    ],
)
def test_a_module_trained_whole_is_named_as_in_memory(folders: Folders, tmp_path: Path, rename: Rename) -> None:
    adapter = tiny.write_adapter(tmp_path / "adapter", folders.base, modules_to_save=["lm_head"])
    found = rename(f"{PREFIX}lm_head.weight")
    with pytest.raises(UserError, match=rf"lacks '{PREFIX}lm_head\.weight'.*rename '{re.escape(found)}' so"):
        opened(folders.base, renamed(adapter, tmp_path / "renamed", rename))


@pytest.mark.parametrize("part", ["lora_up", "lora_a", "hada_w1"])
def test_an_adapter_without_any_name_of_lora_is_named(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, part: str
) -> None:
    base, plain = pairs["llama"]
    adapter = renamed(plain, tmp_path / "adapter", lambda key: re.sub(r"lora_([AB])", rf"{part}\1", key))
    with pytest.raises(UserError, match=f"adapter: peft would leave out '.*{part}A|no lora_A or lora_B matrix"):
        opened(base, adapter)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (f"{PREFIX}score.weight", "head of a classifier, reward or value model"),
        ("v_head.summary.weight", "head of a classifier, reward or value model"),
        (f"{PREFIX}model.layers.0.extra.weight", "peft would leave out .*extra.* no place for"),
        (f"{PREFIX}model.mtp.layers.0.self_attn.q_proj.lora_A.weight", "another base.*no module model.mtp"),
    ],
)
@pytest.mark.parametrize("layers_on_disk", [False, True])
def test_a_tensor_that_peft_would_leave_out_is_named(
    folders: Folders, tmp_path: Path, key: str, words: str, layers_on_disk: bool
) -> None:
    adapter = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    file = adapter / ADAPTER_FILE
    more = {key: torch.ones(8, 32)}
    if "lora_A" in key:
        more[key.replace("lora_A", "lora_B")] = torch.ones(32, 8)
    save_file({**load_file(file), **more}, file)
    edit_json(adapter / "adapter_config.json", task_type=None)
    with pytest.raises(UserError, match=words):
        load_model(str(folders.base), str(adapter), layers_on_disk=layers_on_disk)


def test_a_lower_adapter_is_read_whole_too(folders: Folders, tmp_path: Path) -> None:
    below = Path(shutil.copytree(folders.adapter, tmp_path / "below"))
    file = below / ADAPTER_FILE
    save_file({key: value for key, value in load_file(file).items() if "layers.1.self_attn.v_" not in key}, file)
    top = tiny.write_adapter(tmp_path / "top", folders.base, seed=7)
    with pytest.raises(UserError, match=r"below: the adapter's file lacks model\.layers\.1\.self_attn\.v_proj"):
        load_model(str(folders.base), str(top), lower_adapters=[str(below)])


def write_lora(folder: Path, base: Path, **settings: Any) -> Path:
    """Write an adapter that acts, however its factors are named."""
    torch.manual_seed(3)
    lora = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj"]])
def test_factors_outside_the_text_decoder_are_no_sites(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, targets: list[str]
) -> None:
    base, _ = pairs["gemma3"]
    adapter = write_lora(tmp_path / "adapter", base, target_modules=targets)
    stored = load_file(adapter / ADAPTER_FILE)
    found = load_model(str(base), str(adapter))
    assert torch.equal(opened(base, adapter), with_peft(base, adapter))
    target = resolve_target(found)
    assert {site.key for site in target.sites} == {key for key in stored if "language_model" in key}
    assert {tensor.key for tensor in target.outside} == {key for key in stored if "vision" in key and "lora_B" in key}
    for tensor in target.outside:
        module = found.causal_model.get_submodule(tensor.key.removeprefix(PREFIX).split(".lora_B")[0])
        update = torch.cat([tuned - aligned for tuned, aligned in tensor.blocks()])
        assert torch.allclose(update, module.get_delta_weight("default"), atol=1e-6)
        assert not tensor.aligned_values().any()


def test_an_adapter_of_the_vision_tower_alone_has_nothing_to_repair(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    base, _ = pairs["gemma3"]
    adapter = write_lora(tmp_path / "adapter", base, target_modules=r".*vision_tower.*q_proj")
    assert load_model(str(base), str(adapter)).sites == ()
    with pytest.raises(UserError, match="no matrix of the part that reads text"):
        resolve_target(load_model(str(base), str(adapter)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers_on_disk", [False, True])
def test_lora_on_embeddings_is_no_site(tmp_path: Path, tied: bool, layers_on_disk: bool) -> None:
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = write_lora(tmp_path / "adapter", base, target_modules=["q_proj", "embed_tokens"])
    assert torch.equal(opened(base, adapter), with_peft(base, adapter))
    target = resolve_target(load_model(str(base), str(adapter), layers_on_disk=layers_on_disk))
    assert {site.kind for site in target.sites} == {"q_proj"}
    [factor] = [tensor for tensor in target.outside if "lora_" in tensor.key]
    assert factor.key.endswith("embed_tokens.lora_embedding_B")
    file = adapter / ADAPTER_FILE
    save_file({**load_file(file), factor.key: factor.aligned_values()}, file)
    without = write_lora(tmp_path / "without", base, target_modules=["q_proj"])
    own = {key: value for key, value in load_file(file).items() if "q_proj" in key}
    save_file(own, without / ADAPTER_FILE)
    assert torch.allclose(with_peft(base, adapter), with_peft(base, without), atol=1e-6)


@pytest.mark.parametrize("saved", [None, ["embed_tokens"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_copies_are_the_same_as_with_peft(tmp_path: Path, tied: bool, saved: list[str] | None) -> None:
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = write_lora(
        tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=saved, ensure_weight_tying=True
    )
    found = load_model(str(base), str(adapter))
    assert torch.equal(opened(base, adapter), with_peft(base, adapter))
    assert {site.kind for site in resolve_target(found).sites} == {"q_proj"}
    with torch.no_grad():
        bare = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
        assert torch.equal(found.with_adapter(adapter).without_adapter().model(IDS).logits, bare)


def test_tied_factors_of_embeddings_are_refused(tmp_path: Path) -> None:
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=True)
    settings = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    adapter = write_lora(tmp_path / "adapter", base, **settings)
    with pytest.raises(UserError, match="'ensure_weight_tying' on embeddings"):
        load_model(str(base), str(adapter))


def write_adapter_with_tokens(folder: Path, base: Path, rows: int, **how: Any) -> Path:
    """Write an adapter of a model to which tokens were added."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows, mean_resizing=False)
    settings = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM", **how}
    adapted = get_peft_model(model, LoraConfig(**settings))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "how", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]}]
)
@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens_are_named_and_the_fix_works(tmp_path: Path, tied: bool, how: dict[str, Any]) -> None:
    rows = tiny.VOCABULARY_SIZE + 2
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = write_adapter_with_tokens(tmp_path / "adapter", base, rows, **how)
    for layers_on_disk in (False, True):
        with pytest.raises(UserError, match=rf"tokens were added .*resize_token_embeddings\({rows}\).*DIR as MODEL"):
            load_model(str(base), str(adapter), layers_on_disk=layers_on_disk)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows)
    model.save_pretrained(tmp_path / "resized")
    assert torch.equal(opened(tmp_path / "resized", adapter), with_peft(tmp_path / "resized", adapter))
    assert resolve_target(load_model(str(tmp_path / "resized"), str(adapter))).sites


def head_with_added_tokens(root: Path) -> tuple[Path, Path]:
    """Write a resized model, and an adapter that trained its head whole."""
    rows, first = tiny.VOCABULARY_SIZE + 2, tiny.write_model(root / "first")
    model = AutoModelForCausalLM.from_pretrained(first)
    model.resize_token_embeddings(rows)
    model.save_pretrained(root / "base")
    return root / "base", write_adapter_with_tokens(root / "adapter", first, rows, modules_to_save=["lm_head"])


def test_what_peft_writes_twice_is_restored_twice_and_measured_once(tmp_path: Path) -> None:
    base, adapter = head_with_added_tokens(tmp_path)
    outside = resolve_target(load_model(str(base), str(adapter))).outside
    repeated = {tensor.key.removeprefix(f"{PREFIX}lm_head."): tensor.repeated for tensor in outside}
    copies = {"weight": False, "modules_to_save.weight": True, "original_module.weight": True}
    assert repeated == {**copies, f"{PREFIX}model.embed_tokens.weight": False}


def test_a_second_copy_that_differs_is_named(tmp_path: Path) -> None:
    base, adapter = head_with_added_tokens(tmp_path)
    file, key = adapter / ADAPTER_FILE, f"{PREFIX}lm_head.modules_to_save.weight"
    tensors = load_file(file)
    save_file({**tensors, key: tensors[key] + 1}, file)
    with pytest.raises(UserError, match=f"peft would leave out '{re.escape(key)}'"):
        opened(base, adapter)


def test_a_model_with_rows_added_is_distinguished_from_another(tmp_path: Path) -> None:
    rows = tiny.VOCABULARY_SIZE + 2
    base = tiny.write_model(tmp_path / "base")
    adapter = write_adapter_with_tokens(tmp_path / "adapter", base, rows)
    other = tiny.write_model(tmp_path / "other", seed=5, vocab_size=rows)
    with pytest.raises(UserError, match=r"another base.*weights differ"):
        load_model(str(other), str(adapter))


@pytest.mark.parametrize(("tied", "targets"), [(True, ["q_proj", "lm_head"]), (False, ["q_proj", "lm_head"])])
def test_merging_is_not_advised_if_it_changes_the_answers(tmp_path: Path, tied: bool, targets: list[str]) -> None:
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = write_lora(tmp_path / "adapter", base, target_modules=targets)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        changed = not torch.allclose(adapted.merge_and_unload()(IDS).logits, with_peft(base, adapter), atol=1e-3)
    with pytest.raises(UserError, match="edits a whole model: leave it out") as caught:
        resolve_target(load_model(str(base), str(adapter)), "delta")
    assert changed == tied == ("merge the adapter first" not in str(caught.value))
