"""Models and adapters that cannot be repaired: what a user does, and the words that the one line must hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForSequenceClassification, LlamaModel

from tests import tiny
from tests.cli.command import Place, edit_json

Case = tuple[str, Callable[[Place], list[object]], tuple[str, ...]]
CASES: list[Case] = []


def bad(
    *words: str, cases: list[Case] = CASES
) -> Callable[[Callable[[Place], list[object]]], Callable[[Place], list[object]]]:
    def register(make: Callable[[Place], list[object]]) -> Callable[[Place], list[object]]:
        cases.append((make.__name__, make, words))
        return make

    return register


def weights(place: Place) -> Path:
    return place.adapter / "adapter_model.safetensors"


def shards(place: Place) -> list[Path]:
    AutoModelForCausalLM.from_pretrained(place.base).save_pretrained(place.base, max_shard_size="20KB")
    (place.base / "model.safetensors").unlink(missing_ok=True)
    found = sorted(place.base.glob("model-*.safetensors"))
    assert len(found) > 2
    return found


def cut(path: Path, length: int) -> None:
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)


def repair_with(place: Place, adapter: object) -> list[object]:
    """Return the arguments of a repair of another adapter."""
    return [adapter if argument is place.adapter else argument for argument in place.repair()]


def change_adapter(place: Place, **config: object) -> list[object]:
    edit_json(place.adapter / "adapter_config.json", **config)
    return place.repair()


@bad("model-00001-of-", "truncated", "fetch")
def shard_cut_inside_its_header(place: Place) -> list[object]:
    cut(shards(place)[0], 40)
    return place.repair()


@bad("adapter changes nothing", "nothing to repair", "name other --sites")
def adapter_that_was_never_trained(place: Place) -> list[object]:
    tensors = load_file(weights(place))
    save_file({key: 0 * tensor if "lora_B" in key else tensor for key, tensor in tensors.items()}, weights(place))
    return place.repair()


@bad("saved as LlamaForSequenceClassification", "name a causal language model")
def classifier(place: Place) -> list[object]:
    config = AutoConfig.from_pretrained(place.base, tie_word_embeddings=True)
    LlamaForSequenceClassification(config).save_pretrained(place.base)
    return ["repair", place.base, "--target", "weight", "--harmful", place.harmful, "--out", place.out]


@bad("lacks lm_head.weight (1 tensor in all)", "saved as LlamaModel", "name a causal language model")
def no_head(place: Place) -> list[object]:
    LlamaModel(AutoConfig.from_pretrained(place.base, tie_word_embeddings=False)).save_pretrained(place.base)
    return ["repair", place.base, "--target", "weight", "--harmful", place.harmful, "--out", place.out]


@bad("model.safetensors", "not a safetensors file", "fetch")
def git_lfs_pointer(place: Place) -> list[object]:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (place.base / "model.safetensors").write_text(pointer)
    return place.repair()


@bad("model.safetensors", "longer", "fetch")
def file_with_bytes_at_its_end(place: Place) -> list[object]:
    with (place.base / "model.safetensors").open("ab") as stream:
        stream.write(b"rest")
    return place.repair()


@bad("index.json", "not valid JSON")
def broken_index(place: Place) -> list[object]:
    shards(place)
    (place.base / "model.safetensors.index.json").write_text("{")
    return place.repair()


@bad("index.json", "weight_map")
def index_without_a_map(place: Place) -> list[object]:
    shards(place)
    (place.base / "model.safetensors.index.json").write_text("{}")
    return place.repair()


@bad("base", "lacks", "fetch")
def tensors_that_are_not_there(place: Place) -> list[object]:
    path = place.base / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    return change_adapter(place, base_model_name_or_path="somebody/base")


@bad("pickled", "adapter_model.bin", "safetensors")
def pickled_adapter(place: Place) -> list[object]:
    torch.save(load_file(weights(place)), place.adapter / "adapter_model.bin")
    weights(place).unlink()
    return place.repair()


@bad("adapter_model.safetensors", "truncated")
def truncated_adapter(place: Place) -> list[object]:
    cut(weights(place), -100)
    return place.repair()


@bad("no model.safetensors", "weights are missing")
def no_weights(place: Place) -> list[object]:
    (place.base / "model.safetensors").unlink()
    return place.repair()


@bad("base", "no config.json")
def no_config(place: Place) -> list[object]:
    (place.base / "config.json").unlink()
    return place.repair()


@bad("config.json", "not valid JSON")
def config_that_is_no_json(place: Place) -> list[object]:
    (place.base / "config.json").write_text("{'model_type': 'llama'}")
    return place.repair()


@bad("config.json", "expected an object")
def config_that_is_a_list(place: Place) -> list[object]:
    (place.base / "config.json").write_text("[]")
    return place.repair()


@bad("adapter_config.json", "not valid JSON")
def adapter_config_that_is_no_json(place: Place) -> list[object]:
    (place.adapter / "adapter_config.json").write_text("")
    return place.repair()


@bad("base", "transformers cannot open it")
def unknown_architecture(place: Place) -> list[object]:
    edit_json(place.base / "config.json", model_type="telepath", architectures=["Telepath"])
    return place.repair()


@bad("base", "transformers cannot open it")
def config_with_a_word_for_a_number(place: Place) -> list[object]:
    edit_json(place.base / "config.json", hidden_size="thirty-two")
    return place.repair()


@bad("base", "layers.0.mlp.down_proj.weight", "32 x 48", "32 x 64", "fetch")
def config_of_another_size(place: Place) -> list[object]:
    edit_json(place.base / "config.json", intermediate_size=64)
    return place.repair()


@bad("another base", "k_proj", "64")
def adapter_of_a_base_of_other_shapes(place: Place) -> list[object]:
    other = tiny.write_model(place.root / "other", hidden_size=64, num_hidden_layers=1)
    adapter = tiny.write_adapter(place.root / "of other", other)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="somebody/other")
    return repair_with(place, adapter)


@bad("another base", "no module", "layers.2")
def adapter_of_a_deeper_base(place: Place) -> list[object]:
    other = tiny.write_model(place.root / "other", num_hidden_layers=3)
    adapter = tiny.write_adapter(place.root / "of other", other)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="somebody/other")
    return repair_with(place, adapter)


@bad("another base", "weights differ")
def adapter_of_a_base_of_other_weights(place: Place) -> list[object]:
    other = tiny.write_model(place.root / "other", seed=5)
    return repair_with(place, tiny.write_adapter(place.root / "of other", other))


@bad("nameless", "only LoRA")
def adapter_of_no_kind(place: Place) -> list[object]:
    return change_adapter(place, peft_type=None)


@bad("pissa", "plain LoRA")
def lora_that_moved_its_base(place: Place) -> list[object]:
    return change_adapter(place, init_lora_weights="pissa_niter_4")


@bad("lacks", "layers.1.self_attn.v_proj")
def adapter_without_a_module_of_its_configuration(place: Place) -> list[object]:
    tensors = {name: value for name, value in load_file(weights(place)).items() if "layers.1.self_attn.v_" not in name}
    save_file(tensors, weights(place))
    return place.repair()


@bad("no lora_A or lora_B")
def adapter_of_other_tensors_alone(place: Place) -> list[object]:
    save_file({"base_model.model.lm_head.weight": torch.zeros(2, 2)}, weights(place))
    return place.repair()


@bad("I32", "floating-point")
def adapter_of_integers(place: Place) -> list[object]:
    save_file({name: value.int() for name, value in load_file(weights(place)).items()}, weights(place))
    return place.repair()


@bad("base", "no adapter_config.json")
def whole_model_as_adapter(place: Place) -> list[object]:
    return repair_with(place, place.base)


@bad("adapter", "as MODEL", "--adapter")
def adapter_as_model_and_as_adapter(place: Place) -> list[object]:
    return ["repair", place.adapter, *place.repair()[2:]]


@bad("base", "folders of their own")
def adapter_and_model_in_one_folder(place: Place) -> list[object]:
    for path in place.adapter.iterdir():
        shutil.copy(path, place.base)
    return ["repair", place.base, "--harmful", place.harmful, "--evaluate", "none", "--out", place.out]


@bad("names no base model", "MODEL")
def adapter_alone_that_names_no_base(place: Place) -> list[object]:
    edit_json(place.adapter / "adapter_config.json", base_model_name_or_path=None)
    return ["repair", place.adapter, *place.repair()[4:]]


@bad("somebody/moved", "Hub")
def adapter_alone_whose_base_is_gone(place: Place) -> list[object]:
    edit_json(place.adapter / "adapter_config.json", base_model_name_or_path="somebody/moved")
    return ["repair", place.adapter, *place.repair()[4:]]


@bad("model.safetensors", "is a file", "folder")
def model_that_is_a_file(place: Place) -> list[object]:
    return ["repair", place.base / "model.safetensors", *place.repair()[2:]]


@bad("nowhere", "no such folder")
def model_that_is_not_there(place: Place) -> list[object]:
    return ["repair", place.root / "nowhere", *place.repair()[2:]]


@bad("./nowhere", "no such folder")
def adapter_that_is_not_there(place: Place) -> list[object]:
    return repair_with(place, "./nowhere")


@bad("somebody/model", "Hub", "network")
def hub_id_while_offline(place: Place) -> list[object]:
    return ["repair", "somebody/model", *place.repair()[2:]]


@bad("not a name", "Hub")
def words_for_a_model(place: Place) -> list[object]:
    return ["repair", "not a name", *place.repair()[2:]]


@bad("generation_config.json", "not valid JSON", "fetch")
def generation_settings_cut_short(place: Place) -> list[object]:
    cut(place.base / "generation_config.json", 5)
    return place.repair()


@bad("base", "transformers cannot open it", "fetch")
def config_of_no_heads(place: Place) -> list[object]:
    edit_json(place.base / "config.json", num_attention_heads=0)
    return place.repair()


@bad("base", "Padding_idx", "fetch")
def config_that_pads_outside_the_vocabulary(place: Place) -> list[object]:
    edit_json(place.base / "config.json", pad_token_id=999)
    return place.repair()


@bad("adapter", "target_modules is no pattern", "subpattern")
def adapter_of_a_broken_pattern(place: Place) -> list[object]:
    return change_adapter(place, target_modules="(q_proj")


@bad("lora_A of model.layers.0.self_attn.k_proj", "does not adapt", "save or fetch")
def adapter_with_more_than_its_configuration(place: Place) -> list[object]:
    return change_adapter(place, target_modules=["q_proj", "v_proj"])


@bad("base", "custom code", "--trust-remote-code")
def config_of_a_kind_that_its_own_code_defines(place: Place) -> list[object]:
    edit_json(place.base / "config.json", model_type="zorbik", auto_map={"AutoConfig": "configuration_zorbik.Zorbik"})
    return place.repair()


@bad("base", "FlashAttention2", "install it, or take")
def config_that_asks_for_another_package(place: Place) -> list[object]:
    edit_json(place.base / "config.json", attn_implementation="flash_attention_2")
    return place.repair()


def config_says(words: str, **config: object) -> None:
    """Register the case of a model whose configuration cannot be its own."""

    def make(place: Place) -> list[object]:
        edit_json(place.base / "config.json", **config)
        return place.repair()

    CASES.append((f"config_says_{words}".replace(" ", "_"), make, ("base", "config.json", words, "fetch")))


config_says("num_hidden_layers is 1000000000", num_hidden_layers=10**9)
config_says("num_hidden_layers is -1", num_hidden_layers=-1)
config_says("text_config.n_layer is 1000000", text_config={"n_layer": 10**6})
config_says("num_local_experts is 1000000000", num_local_experts=10**9)
config_says("pretraining_tp is 100000", pretraining_tp=100_000)
config_says("vision_config.depths is 100000", vision_config={"depths": [2, 100_000]})
config_says("pad_token_id is a number of 31 digits", pad_token_id=10**30)
for name in ("hidden_size", "vocab_size", "intermediate_size", "head_dim", "num_key_value_heads"):
    config_says(f"describes a model of {name}", **{name: 10**12})
    CASES[-1] = (*CASES[-1][:2], ("base", "config.json describes a model of", "hold 17760", "fetch"))


@bad("config.json", "not valid JSON", "recursion")
def config_of_brackets(place: Place) -> list[object]:
    (place.base / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    return place.repair()


def adapter_says(name: str, words: str, **config: object) -> None:
    """Register the case of an adapter whose configuration peft would work on without an end, or in vain."""

    def make(place: Place) -> list[object]:
        return change_adapter(place, **config)

    CASES.append((f"adapter_of_{name}", make, ("adapter", "adapter_config.json", words, "save or fetch")))


adapter_says("an_absurd_rank", "r is 1000000000, and its file has no matrix with more than 32", r=10**9)
adapter_says("rank_0", "r is 0, no rank", r=0)
adapter_says("a_rank_in_quotes", "r is '8', no rank", r="8")
adapter_says("a_rank_that_is_true", "r is True, no rank", r=True)
adapter_says("an_absurd_rank_of_some", "rank_pattern of 'q_proj' is 1000000000", rank_pattern={"q_proj": 10**9})
adapter_says("no_scale", "lora_alpha is nan, no finite number", lora_alpha=float("nan"))
adapter_says("a_scale_beyond_floats", "lora_alpha is 1000", lora_alpha=10**400)
adapter_says("no_scale_of_some", "alpha_pattern of 'q_proj' is 'x', no finite", alpha_pattern={"q_proj": "x"})
adapter_says("ranks_in_a_list", "rank_pattern is no object", rank_pattern=["q_proj"])
adapter_says("many_targets", "target_modules has 100000 entries", target_modules=[f"zo{n}" for n in range(100_000)])
adapter_says("many_layers", "layers_to_transform has 100000 entries", layers_to_transform=list(range(100_000)))


def reward_adapter(place: Place) -> Path:
    """Write the adapter of a reward model, with its head."""
    model = LlamaForSequenceClassification.from_pretrained(place.base, num_labels=1)
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    get_peft_model(model, lora).save_pretrained(place.root / "reward")
    return place.root / "reward"


def with_value_head(place: Place) -> Path:
    """Give the base the head of a PPO trainer."""
    path = place.base / "model.safetensors"
    save_file({**load_file(path), "v_head.summary.weight": torch.ones(1, 32)}, path, metadata={"format": "pt"})
    return place.base


def _each_command(place: Place, model: Path, adapter: Path | None) -> dict[str, list[object]]:
    """Return the arguments of every command that opens a model."""
    named: list[object] = [model, *(["--adapter", adapter] if adapter else [])]
    data, out = ["--data", place.harmful], ["--out", place.out]
    return {
        "repair": ["repair", *named, "--harmful", place.harmful, "--evaluate", "none", *out],
        "list": ["repair", *named, "--list-sites"],
        "evaluate": ["evaluate", *named, "--harmful", place.harmful, "--max-new-tokens", "2", *out],
        "align": ["align", model if adapter is None else adapter, *data, "--max-steps", "1", *out],
        "finetune": ["finetune", model if adapter is None else adapter, *data, "--max-steps", "1", *out],
    }


def _other_head(command: str, kind: str) -> Case:
    def make(place: Place) -> list[object]:
        if kind == "adapter":
            return _each_command(place, place.base, reward_adapter(place))[command]
        model = with_value_head(place)
        return _each_command(place, model, None)[command]

    words = {
        "adapter": ("reward", "a classifier or reward model", "task_type SEQ_CLS", "name the adapter of a causal"),
        "value": ("base", "v_head.summary.weight", "value model", "name one without"),
    }
    return f"{kind}_head_in_{command}", make, words[kind]


CASES += [
    _other_head(command, kind)
    for kind in ("adapter", "value")
    for command in ("repair", "list", "evaluate", "align", "finetune")
]


@bad("misnamed", "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "rename")
def adapter_of_a_compiled_model(place: Place) -> list[object]:
    save_file({f"_orig_mod.{key}": value for key, value in load_file(weights(place)).items()}, weights(place))
    return place.repair()


@bad("adapter", "(models/base)", "pass MODEL --adapter")
def adapter_alone_of_another_machine(place: Place) -> list[object]:
    edit_json(place.adapter / "adapter_config.json", base_model_name_or_path="models/base")
    return ["repair", place.adapter, *place.repair()[4:]]


@bad("adapter", "somebody/base", "Hub", "pass MODEL --adapter")
def adapter_alone_of_a_base_out_of_reach(place: Place) -> list[object]:
    edit_json(place.adapter / "adapter_config.json", base_model_name_or_path="somebody/base")
    return ["repair", place.adapter, *place.repair()[4:]]


@bad("37 rows", "resize_token_embeddings(37)", "as MODEL")
def adapter_with_more_tokens(place: Place) -> list[object]:
    head = {"base_model.model.lm_head.weight": torch.ones(tiny.VOCABULARY_SIZE + 2, 32)}
    save_file({**load_file(weights(place)), **head}, weights(place))
    return place.repair()


@bad("base", "GGUF", "name the checkpoint")
def model_of_another_format(place: Place) -> list[object]:
    (place.base / "model.safetensors").rename(place.base / "zorb-Q4_K_M.gguf")
    return place.repair()
