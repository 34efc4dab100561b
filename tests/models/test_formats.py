"""Folders and files that are no checkpoint of transformers or peft: each is named, with what to do instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from antidote_llm.errors import UserError
from antidote_llm.models.adapter import ADAPTER_FILE, may_be_on_the_hub
from antidote_llm.models.checkpoint import INDEX
from antidote_llm.models.load import load_model
from tests import tiny
from tests.cli.command import edit_json
from tests.conftest import Folders

# The files of a folder without weights that transformers reads, and the words of the error.
ALONE: dict[str, tuple[tuple[str, ...], str]] = {
    "meta": (
        ("params.json", "consolidated.00.pth", "tokenizer.model"),
        "Meta's or Mistral's own format.*convert_llama",
    ),
    "mistral": (("params.json", "consolidated.safetensors", "tekken.json"), "own format.*convert_mistral"),
    "llama.cpp": (("zorb-Q4_K_M.gguf",), "GGUF.*name the checkpoint that it was converted from"),
    "empty": ((), "an empty folder"),
    "tokenizer": (("tokenizer.json", "tokenizer_config.json"), "a tokenizer and no model.*with tokenizer"),
    "models--zorb--small": (
        ("refs/main", "blobs/abc"),
        "without anything in snapshots.*hf download zorb/small",
    ),
    "models--zorb--mini": (
        ("refs/main", "snapshots/abc123/config.json"),
        "Hub id, or a folder in snapshots.*abc123",
    ),
    "hub": (("models--zorb--mini/refs/main", "version.txt"), "the Hub's cache: name a model by its Hub id .zorb/mini"),
    "deepspeed": (
        ("zero_to_fp32.py", "global_step500/mp_rank_00_model_states.pt"),
        "DeepSpeed.*zero_to_fp32",
    ),
    "deepspeed step": (("zero_pp_rank_0_mp_rank_00_optim_states.pt",), "DeepSpeed.*zero_to_fp32"),
    "fsdp": (("pytorch_model_fsdp_0/__0_0.distcp",), "FSDP.*accelerate merge-weights"),
    "distributed": (("__0_0.distcp", ".metadata"), "FSDP.*accelerate merge-weights"),
    "training": (("checkpoint-500/config.json", "checkpoint-1000/config.json"), "name one of.*-500, checkpoint-1000"),
    "result": (("model/config.json", "record/repair.json"), "folders inside it: name one of them: model"),
    "images": (("model_index.json", "unet/config.json"), "diffusers: name the folder of a causal language model"),
    "nemo": (("zorb.nemo",), "NeMo"),
    "mlc": (("mlc-chat-config.json", "params_shard_0.bin"), "MLC.*converted from"),
    "tensorrt": (("rank0.engine",), "TensorRT.*converted from"),
    "zip": (("model.zip",), "an archive: unpack it"),
    "without a configuration": (("model.safetensors",), "weights without their configuration: fetch config.json"),
}
# The same, with a configuration.
BESIDE: dict[str, tuple[tuple[str, ...], str]] = {
    "llama.cpp": (("zorb.gguf",), "GGUF"),
    "onnx": (("onnx/model.onnx",), "ONNX.*converted from"),
    "openvino": (("openvino_model.xml", "openvino_model.bin"), "OpenVINO.*converted from"),
    "tensorflow": (("tf_model.h5",), "TensorFlow.*name the checkpoint for PyTorch"),
    "flax": (("flax_model.msgpack",), "Flax.*name the checkpoint for PyTorch"),
    "unfinished": (("model.safetensors.incomplete",), "an unfinished download: fetch it again"),
    "without an index": (("model-00001-of-00002.safetensors",), r"shards without model\.safetensors\.index\.json"),
    "variant": (("model.fp16.safetensors",), "under another name"),
    "training": (("checkpoint-500/config.json", "training_args.bin"), "name one of them: checkpoint-500"),
    "arguments alone": (("training_args.bin", "optimizer.pt"), "the weights are missing"),
    "pickled": (("pytorch_model.bin", "tf_model.h5", "training_args.bin"), r"pickled weights \(pytorch_model\.bin\)"),
}
ADAPTERS: dict[str, tuple[tuple[str, ...], str]] = {
    "mlx": (("adapters.safetensors",), r"an adapter of mlx.*mlx_lm\.fuse.*aligned BASE"),
    "mlx of before": (("adapters.npz",), r"an adapter of mlx.*mlx_lm\.fuse.*aligned BASE"),
    "sharded": (("adapter_model-00001-of-00002.safetensors",), r"in shards.*one adapter_model\.safetensors"),
    "pickled": (("adapter_model.bin",), r"pickled weights \(adapter_model\.bin\).*PeftModel\.from_pretrained"),
    "llama.cpp": (("adapter.gguf",), "GGUF"),
}


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"made up")
    return folder


@pytest.mark.parametrize("kind", ALONE)
def test_a_folder_of_something_else_is_named(tmp_path: Path, folders: Folders, kind: str) -> None:
    names, words = ALONE[kind]
    folder = fill(tmp_path / kind, names)
    for asked in ((str(folder),), (str(folders.base), str(folder))):
        if len(asked) == 1 or kind != "without a configuration":
            with pytest.raises(UserError, match=words):
                load_model(*asked)


@pytest.mark.parametrize("kind", BESIDE)
def test_weights_in_another_format_are_named(tmp_path: Path, folders: Folders, kind: str) -> None:
    names, words = BESIDE[kind]
    folder = fill(tmp_path / "model", names)
    shutil.copy(folders.base / "config.json", folder)
    with pytest.raises(UserError, match=words):
        load_model(str(folder))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_in_another_format_is_named(tmp_path: Path, folders: Folders, kind: str) -> None:
    names, words = ADAPTERS[kind]
    folder = fill(tmp_path / "adapter", names)
    shutil.copy(folders.adapter / "adapter_config.json", folder)
    for asked in ((str(folder),), (str(folders.base), str(folder))):
        with pytest.raises(UserError, match=words):
            load_model(*asked)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zorb.gguf", "GGUF"),
        ("zorb.zip", "unpack"),
        ("zorb.tar.gz", "unpack"),
        ("zorb.nemo", "NeMo"),
        ("pytorch_model.bin", "pickled weights.*save_pretrained"),
        ("model.safetensors", r"name the folder of the checkpoint \(.*place\)"),
        ("notes.txt", "name the folder of the checkpoint"),
    ],
)
def test_a_file_in_a_folders_place_is_named(tmp_path: Path, name: str, words: str) -> None:
    folder = fill(tmp_path / "place", (name,))
    with pytest.raises(UserError, match=f"is a file: .*{words}"):
        load_model(str(folder / name))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("sharded") / "model", max_shard_size="20KB")


@pytest.mark.parametrize("layers_on_disk", [False, True])
@pytest.mark.parametrize("more", [{}, {"metadata": None}, {"metadata": []}, {"metadata": {}, "version": 2}])
@pytest.mark.parametrize("start", ["", "./"])
def test_an_index_needs_a_map_alone(
    sharded: Path, tmp_path: Path, more: dict[str, object], start: str, layers_on_disk: bool
) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder / INDEX).write_text(json.dumps({**more, "weight_map": {key: start + name for key, name in places.items()}}))
    found = load_model(str(folder), layers_on_disk=layers_on_disk)
    assert found.base.weights.keys() == set(places.values()) and found.base.folder == folder
    assert found.causal_model.config.name_or_path in ("", str(folder))
    if not layers_on_disk:
        wanted = load_model(str(sharded)).model.state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in found.model.state_dict().items())


@pytest.mark.parametrize("layers_on_disk", [False, True])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantised weights of mlx.*mlx_lm.convert --dequantize"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights.*take the entry out"),
        ({"dtype": "bf16"}, "dtype 'bf16', which is no type of torch: write float32, bfloat16"),
        ({"dtype": None, "torch_dtype": "torch.float16"}, "torch_dtype 'torch.float16', which is no type"),
        ({"dtype": ["float32"]}, "is no type of torch"),
        ({"dtype": "auto"}, "is no type of torch"),
        ({"architectures": ["LlamaForMaskedLM"]}, "saved as LlamaForMaskedLM: name a causal language model"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_named(
    folders: Folders, tmp_path: Path, config: dict[str, object], words: str, layers_on_disk: bool
) -> None:
    folder = Path(shutil.copytree(folders.base, tmp_path / "model"))
    edit_json(folder / "config.json", **config)
    with pytest.raises(UserError, match=words):
        load_model(str(folder), layers_on_disk=layers_on_disk)


@pytest.mark.parametrize("layers_on_disk", [False, True])
@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"architectures": None}, torch.float32),
        ({"architectures": []}, torch.float32),
        ({"dtype": None, "torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "auto"}, torch.float32),
        ({"dtype": None}, torch.float32),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, torch.float32),
    ],
)
def test_older_configurations_are_read(
    folders: Folders, tmp_path: Path, config: dict[str, object], dtype: torch.dtype, layers_on_disk: bool
) -> None:
    folder = Path(shutil.copytree(folders.base, tmp_path / "model"))
    edit_json(folder / "config.json", **config)
    assert load_model(str(folder), layers_on_disk=layers_on_disk).dtype == dtype


def with_tensor(base: Path, folder: Path, key: str, value: torch.Tensor) -> Path:
    shutil.copytree(base, folder)
    file = folder / "model.safetensors"
    save_file({**load_file(file), key: value}, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("layers_on_disk", [False, True])
@pytest.mark.parametrize("key", ["v_head.summary.weight", "score.weight", "classifier.weight", "qa_outputs.weight"])
def test_a_head_that_a_causal_model_leaves_out_is_refused(
    folders: Folders, tmp_path: Path, key: str, layers_on_disk: bool
) -> None:
    folder = with_tensor(folders.base, tmp_path / "model", key, torch.ones(1, 32))
    edit_json(folder / "config.json", architectures=None)
    with pytest.raises(UserError, match=f"holds {key}, the head of a classifier, reward or value model"):
        load_model(str(folder), layers_on_disk=layers_on_disk)


GATHER = "ZeRO-3.*stage3_gather_16bit_weights_on_model_save.*get_state_dict"


@pytest.mark.parametrize("layers_on_disk", [False, True])
def test_tensors_that_a_training_left_empty_are_named(folders: Folders, tmp_path: Path, layers_on_disk: bool) -> None:
    key = "model.layers.1.self_attn.q_proj.weight"
    folder = with_tensor(folders.base, tmp_path / "model", key, torch.empty(0))
    with pytest.raises(UserError, match=f"'{key}' is empty.*{GATHER}"):
        load_model(str(folder), layers_on_disk=layers_on_disk)


@pytest.mark.parametrize("shape", [(0,), (0, 32), (256,)])
@pytest.mark.parametrize("key", ["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"])
def test_factors_that_a_training_left_empty_are_named(
    folders: Folders, tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    folder = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    save_file({**load_file(folder / ADAPTER_FILE), key: torch.ones(shape)}, folder / ADAPTER_FILE)
    with pytest.raises(UserError, match=f"'{key}' is (empty|flat).*{GATHER}"):
        load_model(str(folders.base), str(folder))


def test_an_adapter_under_a_models_name_is_named(folders: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    (folder / ADAPTER_FILE).rename(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"rename it to adapter_model\.safetensors if it is the adapter's"):
        load_model(str(folders.base), str(folder))


@pytest.mark.parametrize(
    ("name", "may_be"),
    [
        ("meta-llama/Llama-2-7b-hf", True),
        ("unsloth/zorb-bnb-4bit", True),
        ("gpt2", True),
        ("facebook/opt-125m", True),
        ("models/base", False),
        ("Checkpoints/llama", False),
        ("base_model", False),
        ("my_model", False),
        ("outputs/run/merged", False),
        ("my-run/checkpoint-500", False),
        ("../base", False),
        ("./base", False),
        ("~/base", False),
        ("/content/merged", False),
        (r"C:\models\base", False),
        ("D:/models/base", False),
        (r"models\base", False),
        (r"\\server\models", False),
        ("a name with spaces", False),
    ],
)
def test_a_path_of_another_machine_is_distinguished_from_a_hub_id(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, may_be: bool
) -> None:
    asked: list[str] = []

    def hub(name: str, **_: object) -> str:
        asked.append(name)
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert may_be_on_the_hub(name) == may_be
    adapter = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(UserError, match=r"adapter: the adapter.*pass MODEL adapter .*adapter$") as caught:
        load_model(str(adapter))
    assert name in str(caught.value) and asked == ([name] if may_be else [])


def renamed(base: Path, folder: Path, start: str) -> Path:
    shutil.copytree(base, folder)
    file = folder / "model.safetensors"
    save_file({start + key: value for key, value in load_file(file).items()}, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("layers_on_disk", [False, True])
@pytest.mark.parametrize("start", ["_orig_mod.", "module.", "base_model.model.", "pretrained_model."])
def test_misnamed_tensors_of_a_whole_model_are_named(
    folders: Folders, tmp_path: Path, start: str, layers_on_disk: bool
) -> None:
    folder = renamed(folders.base, tmp_path / "model", start)
    with pytest.raises(UserError, match=rf"'{start}lm_head\.weight' is misnamed, it must be 'lm_head\.weight': rename"):
        load_model(str(folder), layers_on_disk=layers_on_disk)


@pytest.mark.parametrize("layers_on_disk", [False, True])
def test_a_model_saved_with_its_adapter_on_it_is_named(folders: Folders, tmp_path: Path, layers_on_disk: bool) -> None:
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders.base), folders.adapter)
    folder = Path(shutil.copytree(folders.base, tmp_path / "model"))
    state = {key: value.contiguous() for key, value in adapted.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"an adapter on it that is not merged \('.*lora_A.*merge_and_unload"):
        load_model(str(folder), layers_on_disk=layers_on_disk)
    beside = with_tensor(
        folders.base, tmp_path / "beside", "model.layers.0.self_attn.q_proj.lora_A.weight", torch.ones(8, 32)
    )
    with pytest.raises(UserError, match=r"among the model's \('.*lora_A\.weight'\) and would be left out: save"):
        load_model(str(beside), layers_on_disk=layers_on_disk)


@pytest.mark.parametrize("layers_on_disk", [False, True])
def test_tensors_that_the_class_has_no_place_for_are_known(
    folders: Folders, tmp_path: Path, layers_on_disk: bool
) -> None:
    assert load_model(str(folders.base), layers_on_disk=layers_on_disk).left_out == ()
    folder = with_tensor(folders.base, tmp_path / "model", "model.extra.weight", torch.ones(2))
    assert load_model(str(folder), layers_on_disk=layers_on_disk).left_out == ("model.extra.weight",)
    old = with_tensor(folders.base, tmp_path / "old", "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))
    assert load_model(str(old), layers_on_disk=layers_on_disk).left_out == ()


def test_rows_that_the_configuration_does_not_count_are_named(folders: Folders, tmp_path: Path) -> None:
    folder = with_tensor(folders.base, tmp_path / "model", "lm_head.weight", torch.ones(37, 32))
    with pytest.raises(UserError, match=r"lm_head\.weight is 37 x 32.*set vocab_size to 37 in config\.json"):
        load_model(str(folder))
