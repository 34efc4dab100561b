"""What a repair edits, broken in every way: whole models, aligned models and adapters, under each of the targets."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from tests import tiny
from tests.cli.command import Place, edit_json

Case: TypeAlias = tuple[str, Callable[[Place], list[object]], tuple[str, ...]]
Damage: TypeAlias = Callable[[Path], None]
SITE, EMBEDDING = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"
NORM, LAST_NORM = "model.layers.0.input_layernorm.weight", "model.norm.weight"
A_FACTOR = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"


def tuned(place: Place) -> Path:
    """Return a fine-tune of the base: every tensor moved a little."""
    folder = place.root / "tuned"
    if not folder.is_dir():
        shutil.copytree(place.base, folder)
        generator = torch.Generator().manual_seed(5)
        rewrite(folder, lambda _, value: value + 0.05 * torch.randn(value.shape, generator=generator))
    return folder


def adapter(place: Place, *more: object) -> list[object]:
    """Return the arguments of a repair of the adapter, which is told apart from no base on this disk."""
    edit_json(place.adapter / "adapter_config.json", base_model_name_or_path="somebody/base")
    return place.repair(*more)


def whole(place: Place, model: Path, *more: object) -> list[object]:
    """Return the arguments of a repair of a whole model."""
    return ["repair", model, "--harmful", place.harmful, "--evaluate", "none", "--out", place.out, *more]


def delta(place: Place, *more: object) -> list[object]:
    """Return the arguments of a repair of the fine-tune, aligned with the base."""
    return whole(place, tuned(place), "--aligned", place.base, *more)


def weight(place: Place, *more: object) -> list[object]:
    """Return the arguments of a repair of the base's bare weights."""
    return whole(place, place.base, "--target", "weight", *more)


def rewrite(folder: Path, edit: Callable[[str, Tensor], Tensor]) -> None:
    """Write a whole model's tensors again, edited by name."""
    path = folder / "model.safetensors"
    tensors = {key: edit(key, value) for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def holding(key: str, value: float) -> Damage:
    """Return what puts a value into the last entry of a tensor."""

    def edit(name: str, tensor: Tensor) -> Tensor:
        if name == key:
            tensor.view(-1)[-1] = value
        return tensor

    return lambda folder: rewrite(folder, edit)


def stored_as(dtype: torch.dtype) -> Damage:
    """Return what casts a model's matrices, and says nothing about it in its configuration."""
    return lambda folder: rewrite(folder, lambda _, value: value.to(dtype) if value.dim() == 2 else value)


def sharded(folder: Path) -> list[Path]:
    """Split a model over two files with an index."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {key: names[key.startswith("model.layers.1.")] for key in tensors}
    for name in names:
        part = {key: value for key, value in tensors.items() if places[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return [folder / name for name in names]


def second_shard(break_it: Damage) -> Damage:
    """Return what splits a model and breaks its second file."""
    return lambda folder: break_it(sharded(folder)[1])


def index_naming(key: str, shard: str) -> Damage:
    """Return what splits a model and changes where its index looks for a tensor."""

    def damage(folder: Path) -> None:
        first, _ = sharded(folder)
        shutil.copy(first, folder.parent / "outside.safetensors")
        index = folder / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        index.write_text(json.dumps({"weight_map": {**weight_map, key: shard}}))

    return damage


def header_saying(**lies: object) -> Damage:
    """Return what changes what a file's header says about a tensor, and leaves the data as they are."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        begin = 8 + struct.unpack("<Q", data[:8])[0]
        header: dict[str, Any] = json.loads(data[8:begin])
        header[SITE] |= lies
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[begin:])

    return damage


def header_of_length(length: int) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return damage


def quantised(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def only_pickled(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "nan_in_a_site": (holding(SITE, float("nan")), (SITE, "NaN")),
    "inf_in_a_site": (holding(SITE, float("inf")), (SITE, "infinite")),
    "nan_in_the_embedding": (holding(EMBEDDING, float("nan")), (EMBEDDING, "NaN")),
    "minus_inf_in_a_norm": (holding(NORM, float("-inf")), (NORM, "infinite")),
    "nan_in_the_last_norm": (holding(LAST_NORM, float("nan")), (LAST_NORM, "NaN")),
    "nan_in_the_head": (holding("lm_head.weight", float("nan")), ("lm_head.weight", "NaN")),
    "second_shard_cut": (second_shard(lambda path: os.truncate(path, 3000)), ("00002-of-00002", "truncated", "fetch")),
    "second_shard_gone": (second_shard(Path.unlink), ("00002-of-00002", "missing", "fetch")),
    "second_shard_empty": (second_shard(lambda path: os.truncate(path, 0)), ("00002-of-00002", "0 bytes", "fetch")),
    "index_to_a_neighbour": (
        index_naming(SITE, "../outside.safetensors"),
        ("index.json", "outside its folder", "../outside.safetensors"),
    ),
    "index_to_the_system": (index_naming(SITE, "/etc/passwd"), ("index.json", "outside its folder", "/etc/passwd")),
    "index_to_the_folder": (index_naming(SITE, ""), ("index.json",)),
    "index_to_the_wrong_shard": (
        index_naming(SITE, "model-00001-of-00002.safetensors"),
        ("index.json", SITE, "00001-of-00002", "fetch"),
    ),
    "index_of_a_tensor_that_is_nowhere": (
        index_naming("model.layers.9.norm.weight", "model-00001-of-00002.safetensors"),
        ("index.json", "model.layers.9.norm.weight", "fetch"),
    ),
    "offsets_that_overlap": (header_saying(data_offsets=[0, 4 * 48 * 32]), ("model.safetensors", "malformed", "fetch")),
    "offsets_past_the_end": (
        header_saying(data_offsets=[1 << 40, (1 << 40) + 6144]),
        ("model.safetensors", "malformed", "fetch"),
    ),
    "offsets_below_zero": (header_saying(data_offsets=[-6144, 0]), ("model.safetensors", "malformed", "fetch")),
    "offsets_of_words": (header_saying(data_offsets=["a", "b"]), ("model.safetensors", "malformed", "fetch")),
    "header_of_another_dtype": (header_saying(dtype="F16"), ("model.safetensors", "malformed", "fetch")),
    "header_of_an_unknown_dtype": (header_saying(dtype="F33"), ("F33",)),
    "header_of_another_shape": (header_saying(shape=[48, 31]), ("model.safetensors", "malformed", "fetch")),
    "header_of_a_negative_shape": (header_saying(shape=[-48, -32]), ("model.safetensors", "malformed", "fetch")),
    "header_of_a_turned_shape": (header_saying(shape=[32, 48]), (SITE, "32 x 48", "48 x 32")),
    "header_longer_than_the_world": (header_of_length(1 << 63), ("model.safetensors", "truncated", "fetch")),
    "header_of_no_bytes": (header_of_length(0), ("model.safetensors", "not a safetensors", "fetch")),
    "quantisation_in_the_config": (quantised, ("quantised", "before quantisation")),
    "matrices_of_int8": (stored_as(torch.int8), ("I8", "before quantisation")),
    "matrices_of_f8": (stored_as(torch.float8_e4m3fn), ("F8_E4M3", "before quantisation")),
    "only_pickled": (only_pickled, ("pytorch_model.bin", "pickled", "safetensors")),
}


def damaged(part: str, name: str) -> Case:
    """Return the case of a repair with one of its checkpoints damaged."""
    damage, words = DAMAGES[name]

    def make(place: Place) -> list[object]:
        arguments = {"adapter": adapter, "delta": delta, "weight": weight, "aligned": delta}[part](place)
        damage(tuned(place) if part == "delta" else place.base)
        return arguments

    return f"{part}_{name}", make, (*words, "tuned" if part == "delta" else "base")


def aligned_with(edit: Callable[[Place], object]) -> Callable[[Place], list[object]]:
    """Return the case of a delta whose aligned model is another one."""

    def make(place: Place) -> list[object]:
        arguments = delta(place)
        found = edit(place)
        return [*arguments, "--aligned", found] if isinstance(found, Path | str) else arguments

    return make


def other(**settings: Any) -> Callable[[Place], Path]:
    return lambda place: tiny.write_model(place.root / "other", with_tokenizer=False, **settings)


def one_tensor_more(place: Place) -> None:
    path = place.base / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.extra.weight": torch.ones(3)}, path, metadata={"format": "pt"})


def mixtral(place: Place) -> Path:
    sizes = {"vocab_size": tiny.VOCABULARY_SIZE, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(place.root / "mixtral")
    tiny.tokenizer().save_pretrained(place.root / "mixtral")
    return place.root / "mixtral"


def same_model_in_shards(place: Place) -> Path:
    """Return the fine-tune once more, split into other files."""
    copy = place.root / "copy"
    shutil.copytree(tuned(place), copy)
    sharded(copy)
    return copy


def peft_kind(config: Any, *words: str) -> Case:
    """Return the case of an adapter of another kind, as peft saves it."""

    def make(place: Place) -> list[object]:
        shutil.rmtree(place.adapter)
        model: Any = AutoModelForCausalLM.from_pretrained(place.base)
        get_peft_model(model, config).save_pretrained(place.adapter)
        return adapter(place)

    return f"adapter_of_{type(config).__name__}", make, ("adapter", *words)


def adapter_tensors(edit: Callable[[dict[str, Tensor]], object], **config: object) -> Callable[[Place], list[object]]:
    """Return the case of an adapter whose tensors and configuration were changed."""

    def make(place: Place) -> list[object]:
        path = place.adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
        edit_json(place.adapter / "adapter_config.json", **config)
        return adapter(place)

    return make


def set_first(value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[A_FACTOR][0, 0].fill_(value)


def without_rank(tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        tensors[key] = value[:0] if "lora_A" in key else value[:, :0].contiguous()


def several_adapters(place: Place) -> Path:
    folder = place.root / "several"
    for name in ("first", "second"):
        shutil.copytree(place.adapter, folder / name)
    return folder


def too_large_for_float16(place: Place) -> list[object]:
    holding(SITE, 1e6)(place.base)
    return weight(place, "--dtype", "float16")


def inside(part: str) -> Callable[[Place], list[object]]:
    """Return the case of a result inside one of the inputs, however it is written."""

    def make(place: Place) -> list[object]:
        if part == "adapter":
            return [*place.repair(), "--out", place.adapter / "repaired"]
        arguments = delta(place)
        if part == "link":
            (place.root / "link").symlink_to(place.base, target_is_directory=True)
        out = {"tuned": tuned(place) / "new" / "repaired", "link": place.root / "link" / "repaired"}
        return [*arguments, "--out", out.get(part, place.base / ".." / "base" / "repaired")]

    return make


CASES: list[Case] = [
    *(damaged(part, name) for name in DAMAGES for part in ("adapter", "delta", "weight", "aligned")),
    ("too_large_for_float16", too_large_for_float16, ("base", SITE, "float16", "--dtype float32")),
    ("aligned_of_another_width", aligned_with(other(hidden_size=64)), ("other", "64", "another shape")),
    ("aligned_of_one_row_more", aligned_with(other(vocab_size=36)), ("other", "36 x 32", "35 x 32", "vocabulary")),
    ("aligned_of_one_layer_fewer", aligned_with(other(num_hidden_layers=1)), ("other", "layers.1", "another shape")),
    ("aligned_of_one_layer_more", aligned_with(other(num_hidden_layers=3)), ("other", "layers.2", "another shape")),
    ("aligned_of_one_tensor_more", aligned_with(one_tensor_more), ("base", "layers.0.extra", "another shape")),
    ("aligned_of_another_kind", aligned_with(mixtral), ("mixtral", "another shape")),
    ("aligned_that_is_an_adapter", aligned_with(lambda place: place.adapter), ("--aligned", "adapter", "merge")),
    ("aligned_that_is_itself", aligned_with(tuned), ("tuned", "no update")),
    ("aligned_that_is_its_copy", aligned_with(same_model_in_shards), ("tuned", "copy", "no update")),
    ("aligned_that_is_not_there", aligned_with(lambda place: place.root / "nowhere"), ("nowhere", "no such folder")),
    ("aligned_that_is_a_file", aligned_with(lambda place: place.harmful), ("harmful.jsonl", "folder")),
    ("aligned_on_a_hub_out_of_reach", aligned_with(lambda _: "somebody/aligned"), ("somebody/aligned", "network")),
    peft_kind(VeraConfig(r=4, target_modules=["q_proj"]), "VERA", "only LoRA"),
    peft_kind(IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "IA3", "only LoRA"),
    peft_kind(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING", "only LoRA"),
    peft_kind(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING", "only LoRA"),
    peft_kind(LoHaConfig(r=4, target_modules=["q_proj"]), "LOHA", "only LoRA"),
    peft_kind(AdaLoraConfig(target_modules=["q_proj"], total_step=10), "ADALORA", "only LoRA"),
    peft_kind(
        LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5]), "trainable_token_indices", "only plain"
    ),
    ("nan_in_a_factor", adapter_tensors(set_first(float("nan"))), (A_FACTOR, "NaN", "adapter_model.safetensors")),
    ("inf_in_a_factor", adapter_tensors(set_first(float("inf"))), (A_FACTOR, "infinite", "adapter_model.safetensors")),
    ("rank_of_the_configuration", adapter_tensors(lambda _: None, r=4), ("adapter", "lora_A", "8", "4")),
    ("rank_of_zero", adapter_tensors(without_rank, r=0), ("adapter_config.json", "r is 0, no rank")),
    (
        "ranks_that_differ",
        adapter_tensors(lambda tensors: tensors.update({A_FACTOR: torch.ones(4, 32)})),
        ("adapter_model.safetensors", "layers.1.self_attn.k_proj", "ranks"),
    ),
    (
        "factor_of_three_axes",
        adapter_tensors(lambda tensors: tensors.update({A_FACTOR: torch.ones(8, 32, 1)})),
        (A_FACTOR, "[8, 32, 1]", "only LoRA on matrices"),
    ),
    (
        "factor_alone",
        adapter_tensors(lambda tensors: tensors.pop(A_FACTOR)),
        ("layers.1.self_attn.k_proj.lora_B", "no partner", "incomplete"),
    ),
    (
        "several_adapters_as_adapter",
        lambda place: place.repair("--adapter", several_adapters(place)),
        ("several", "name one of them", "first, second"),
    ),
    (
        "several_adapters_as_model",
        lambda place: whole(place, several_adapters(place)),
        ("several", "name one of them", "first, second"),
    ),
    ("adapter_twice", lambda place: place.repair("--adapter", place.adapter), ("adapter", "twice")),
    ("sites_of_no_adapter", lambda place: adapter(place, "--sites", "o_proj"), ("--sites o_proj", "q_proj")),
    ("sites_of_no_delta", lambda place: delta(place, "--sites", "*.layers.7.*"), ("--sites *.layers.7.*", "up_proj")),
    ("sites_of_no_weight", lambda place: weight(place, "--sites", "qkv,zorbik"), ("'zorbik'", "o_proj")),
    ("sites_of_nothing", lambda place: weight(place, "--sites", ""), ("--sites", "o_proj")),
    ("sites_that_are_no_matrices", lambda place: weight(place, "--sites", "*norm*"), ("--sites *norm*", "o_proj")),
    (
        "auto_on_experts",
        lambda place: whole(place, mixtral(place), "--target", "weight", "--calibration", "auto"),
        ("--calibration auto", "experts", "all"),
    ),
    (
        "sites_of_nothing_listed",
        lambda place: ["repair", place.base, "--target", "weight", "--sites", "zorbik", "--list-sites"],
        ("'zorbik'", "o_proj"),
    ),
    ("no_target", lambda place: whole(place, place.base), ("base", "--adapter", "--aligned", "--target weight")),
    ("delta_of_nothing", lambda place: whole(place, place.base, "--target", "delta"), ("--target delta", "--aligned")),
    ("adapter_of_nothing", lambda place: whole(place, place.base, "--target", "adapter"), ("base", "--adapter")),
    ("delta_of_an_adapter", lambda place: adapter(place, "--target", "delta"), ("--target delta", "merge")),
    (
        "weight_with_an_aligned_model",
        lambda place: delta(place, "--target", "weight"),
        ("--target weight", "--aligned", "delta"),
    ),
    ("weight_of_an_adapter", lambda place: adapter(place, "--target", "weight"), ("--target weight", "merge")),
    ("aligned_of_an_adapter", lambda place: adapter(place, "--aligned", place.base), ("--aligned", "leave")),
    (
        "nothing_to_restore_from",
        lambda place: weight(place, "--restore-outside"),
        ("--restore-outside", "--aligned"),
    ),
    *(
        (f"out_inside_{part}", inside(part), ("nothing is written into", "input", "--out"))
        for part in ("adapter", "tuned", "aligned", "link")
    ),
    ("out_that_is_the_model", lambda place: [*delta(place), "--out", tuned(place)], ("tuned", "input", "--out")),
    ("out_that_is_the_aligned", lambda place: [*delta(place), "--out", place.base], ("base", "input", "--out")),
]
