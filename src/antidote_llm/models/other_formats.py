"""What a folder or file is that is no checkpoint in the format of transformers and peft, and what to name instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeAlias

from antidote_llm.errors import listed, setting

_Files: TypeAlias = Sequence[str]
# For tensors without entries, which a trainer left on its other processes.
NOT_GATHERED = (
    "DeepSpeed ZeRO-3 or FSDP saved it without gathering its parts: save again with "
    "stage3_gather_16bit_weights_on_model_save, or from the checkpoint with zero_to_fp32.py (ZeRO-3), or with "
    "accelerator.get_state_dict(model) as state_dict"
)
_SAVE = "open it with transformers where that can, and save it with save_pretrained"
_NEMO = "a checkpoint of NeMo: convert it for transformers with NeMo"
_ARCHIVE = "an archive: unpack it, and name the folder inside"
_BEFORE = "name the checkpoint that it was converted from, whose weights are safetensors"
_GGUF = f"GGUF, the format of llama.cpp: {_BEFORE}"
# By names of files and folders, in this order: the first that is there decides.
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("zero_to_fp32.py", "global_step*", "zero_pp_rank_*", "mp_rank_*", "*_optim_states.pt"),
        "what DeepSpeed saved, in a part for each process: gather it (python zero_to_fp32.py . OUT "
        "--safe_serialization, in the folder above global_step*), and put config.json and the tokenizer's files there",
    ),
    (
        ("pytorch_model_fsdp*", "*.distcp", "*_fsdp_*", "dist_ckpt"),
        "what FSDP saved, in a part for each process: gather it (accelerate merge-weights FOLDER OUT), and put "
        "config.json and the tokenizer's files beside it",
    ),
    (
        ("adapters.safetensors", "adapters.npz", "*_adapters.safetensors"),
        "an adapter of mlx, which peft does not read: merge it (mlx_lm.fuse --model BASE --adapter-path FOLDER "
        f"--save-path OUT), and repair OUT with {setting('aligned')} BASE",
    ),
    (
        ("adapter_model.safetensors.index.json", "adapter_model-*.safetensors"),
        "an adapter in shards, which peft does not read: put all its tensors into one adapter_model.safetensors "
        "(safetensors.torch.load_file and save_file)",
    ),
    (
        ("pytorch_lora_weights.*",),
        "a LoRA of diffusers, for a model of images: name the adapter of a causal language model",
    ),
    (("model_index.json",), "a pipeline of diffusers: name the folder of a causal language model"),
    (
        ("consolidated.safetensors", "consolidated-*.safetensors", "consolidated.*.pth", "consolidated.pth"),
        "weights in Meta's or Mistral's own format: fetch the files of the same model for transformers (config.json "
        "and model*.safetensors), or convert it (convert_llama_weights_to_hf.py or convert_mistral_weights_to_hf.py in "
        "transformers)",
    ),
    (("*.gguf", "ggml-*.bin", "*.ggml"), _GGUF),
    (("*.nemo", "model_weights", "model_config.yaml"), _NEMO),
    (("mlc-chat-config.json", "params_shard_*.bin", "ndarray-cache.json"), f"weights of MLC: {_BEFORE}"),
    (("rank*.engine", "*.engine", "*.plan"), f"an engine of TensorRT: {_BEFORE}"),
    (("openvino_model*.xml", "openvino_model*.bin"), f"a model of OpenVINO: {_BEFORE}"),
    (("*.onnx", "*.onnx_data", "onnx"), f"a model of ONNX: {_BEFORE}"),
    (("*.mlpackage", "*.mlmodel"), f"a model of Core ML: {_BEFORE}"),
    (("*.tflite", "*.task", "*.litertlm"), f"a model of LiteRT: {_BEFORE}"),
    (
        ("tf_model*.h5", "saved_model.pb", "*.ckpt.index", "*.keras"),
        "weights of TensorFlow, which transformers no longer reads: name the checkpoint for PyTorch",
    ),
    (
        ("flax_model*.msgpack", "*.msgpack"),
        "weights of Flax, which transformers no longer reads: name the checkpoint for PyTorch",
    ),
    (("*.incomplete", "*.aria2", "*.part", "*.crdownload", "*.partial"), "an unfinished download: fetch it again"),
    (
        ("model-*-of-*.safetensors",),
        "shards without model.safetensors.index.json, which says what is in which: fetch that file too",
    ),
    (
        ("model.*.safetensors", "pytorch_model.safetensors", "*.safetensors"),
        "weights under another name than transformers and peft read (model.safetensors, adapter_model.safetensors): "
        "rename the file, if it is a whole model or adapter in their format",
    ),
    (("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z"), _ARCHIVE),
)
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "added_tokens.json", "*.jinja", "*.md")
_OF_FILES: Sequence[tuple[tuple[str, ...], str]] = (
    ((".gguf", ".ggml"), _GGUF),
    ((".nemo",), _NEMO),
    ((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z"), _ARCHIVE),
    ((".onnx", ".h5", ".msgpack", ".tflite", ".engine"), f"a model in another format: {_BEFORE}"),
    ((".bin", ".pt", ".pth", ".ckpt", ".pkl"), f"pickled weights, which can run code when opened: {_SAVE}"),
)


def what_it_is(folder: Path) -> str | None:
    """Return what a folder without a readable configuration or weights holds, and the fix; None if unknown."""
    names = sorted(path.name for path in folder.iterdir())
    return next((found for look in _LOOKS if (found := look(folder, names)) is not None), None)


def what_the_file_is(path: Path) -> str:
    """Return what a file is that was named instead of a folder, and the fix."""
    for suffixes, what in _OF_FILES:
        if path.name.lower().endswith(suffixes):
            return what
    if path.suffix == ".safetensors" or path.name.endswith(".json"):
        return f"name the folder of the checkpoint ({path.parent})"
    return "name the folder of the checkpoint"


def _cache(folder: Path, names: _Files) -> str | None:
    if folder.name.startswith("models--") or {"snapshots", "refs"} & set(names):
        found = sorted(path.name for path in (folder / "snapshots").glob("*") if any(path.iterdir()))
        if found:
            return f"the Hub's cache of one model: name its Hub id, or a folder in snapshots ({listed(found, 3)})"
        hub_id = folder.name.removeprefix("models--").replace("--", "/")
        return f"the Hub's cache of a model, without anything in snapshots: fetch it again (hf download {hub_id})"
    if inside := [name for name in names if name.startswith("models--")]:
        hub_ids = [name.removeprefix("models--").replace("--", "/") for name in inside]
        return f"the Hub's cache: name a model by its Hub id ({listed(hub_ids, 3)})"
    return None


def _folders_inside(folder: Path, names: _Files) -> str | None:
    if "model_index.json" in names:
        return None
    inside = [name for name in names if (folder / name / "config.json").is_file() and not name.startswith(".")]
    if not inside:
        return None
    return f"it holds models in folders inside it: name one of them: {listed(sorted(inside, key=_number), 5)}"


def _number(name: str) -> tuple[int, str]:
    match = re.search(r"(\d+)$", name)
    return (int(match[1]) if match else -1), name


def _format(folder: Path, names: _Files) -> str | None:
    del folder
    others = [name for name in names if name not in ("model.safetensors", "adapter_model.safetensors")]
    return next((what for patterns, what in _KINDS if _any(others, patterns)), None)


def _tokenizer(folder: Path, names: _Files) -> str | None:
    del folder
    if names and _any(names, ("tokenizer*", "vocab.*")) and all(_any([name], _TOKENIZER) for name in names):
        return f"a tokenizer and no model: name the folder of the model, and this one with {setting('tokenizer')}"
    return None


def _weights_alone(folder: Path, names: _Files) -> str | None:
    if (folder / "config.json").is_file() or not _any(names, ("model.safetensors", "model.safetensors.index.json")):
        return None
    if "adapter_config.json" in names:
        return (
            "model.safetensors beside adapter_config.json: rename it to adapter_model.safetensors if it is the "
            "adapter's; if it is a whole model, name the folder that has its config.json"
        )
    return "weights without their configuration: fetch config.json too"


def _empty(folder: Path, names: _Files) -> str | None:
    del folder
    return None if names else "an empty folder: name another, or fetch the model into it"


def _any(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


_LOOKS: Sequence[Callable[[Path, _Files], str | None]] = (
    _cache,
    _folders_inside,
    _weights_alone,
    _format,
    _tokenizer,
    _empty,
)
