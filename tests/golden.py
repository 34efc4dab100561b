"""Runs the real command on tiny inputs and hashes what comes out, so that a change of the code shows what it changes.

    python -m tests.golden FOLDER [--write]

Makes FOLDER, writes inputs and results into it, and prints one JSON object: the versions it ran with, a hash of plain
arithmetic per type (the probe), and the sha256 of every product by name. ``--write`` also puts it into the committed
file. Of two runs whose hashes differ, the folders can be compared file by file.

Only the command line is used, so that it can be run before and after any change of what is below it. Paths are
relative to FOLDER, so that no product depends on where it is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import shlex
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

COMMITTED = Path(__file__).with_name("golden.json")
# Each decides on bits, or on where something is read from.
ENVIRONMENT: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_DYNAMIC": "FALSE",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "ANTIDOTE_CACHE": "cache",
    "PYTHONHASHSEED": "0",
}
PACKAGES = ("torch", "transformers", "peft", "safetensors", "tokenizers")
# What differs between two runs, or says only what was typed; and hashes and sizes of files that hold such things.
_NOT_HASHED = (
    *("versions", "version", "command", "commands", "created", "wall_seconds", "seconds", "peak_rss_bytes"),
    *("sha256", "size_bytes", "predicted_bytes", "answers_sha256", "evaluations_sha256"),
)

_PLAIN = "--harmful inputs/harmful.jsonl --evaluate none --no-cache"
_ADAPTER = f"repair inputs/base --adapter inputs/adapter {_PLAIN}"
_DELTA = f"repair inputs/tuned --aligned inputs/base {_PLAIN}"
_WEIGHT = f"repair inputs/base --target weight {_PLAIN}"
_SHORT = "--max-steps 4 --batch-size 3 --rank 4 --learning-rate 0.01"
_ALIGN = f"align inputs/base --data inputs/safe.jsonl {_SHORT}"
_TUNE = f"finetune inputs/base --data inputs/user.jsonl {_SHORT}"
_PATCHED = "results/delta/record/patch.safetensors"
# Name and command; the result goes to results/NAME.
CASES: Mapping[str, str] = {
    "adapter": _ADAPTER,
    "adapter-matrix": f"{_ADAPTER} --alpha 0.35 --scope matrix",
    "adapter-layer": f"{_ADAPTER} --alpha 0.5 --scope layer --rounding official",
    "adapter-global": f"{_ADAPTER} --scope global --strength 0.5",
    "adapter-paper": f"{_ADAPTER} --preset paper",
    "adapter-official-code": f"{_ADAPTER} --preset official-code",
    "adapter-token-rms": f"{_ADAPTER} --statistic token_rms --norm-power 2 --without-evidence",
    "adapter-responses": f"{_ADAPTER} --tokens response --sites q_proj",
    "adapter-prompts": f"{_ADAPTER} --tokens prompt --template plain --harmful-rows 7 --data-seed 3",
    "adapter-streaming": f"{_ADAPTER} --engine streaming",
    "adapter-own-answers": f"{_ADAPTER} --harmful inputs/requests.jsonl --max-new-tokens 3",
    "adapter-settled": f"{_ADAPTER} --harmful inputs/many.jsonl --calibration auto",
    "adapter-statistics-kept": _ADAPTER.replace("--no-cache", "--alpha 0.4"),
    "adapter-statistics-found": _ADAPTER.replace("--no-cache", "--alpha 0.6"),
    "adapter-random": f"{_ADAPTER} --method random --seed 7",
    "adapter-random-norm": f"{_ADAPTER} --method random --match update-norm --scope global",
    "adapter-magnitude": f"{_ADAPTER} --method magnitude",
    "adapter-magnitude-layer": f"{_ADAPTER} --method magnitude --scope layer --strength 0.25",
    "adapter-interpolate": f"{_ADAPTER} --method interpolate",
    "adapter-interpolate-keep": f"{_ADAPTER} --method interpolate --keep 0.3",
    "adapter-float32-of-bf16": f"repair inputs/base-bf16 --adapter inputs/adapter-bf16 {_PLAIN} --dtype float32",
    "adapter-bf16": f"repair inputs/base-bf16 --adapter inputs/adapter-bf16 {_PLAIN}",
    "adapter-on-adapter": _ADAPTER.replace("--adapter", "--adapter inputs/adapter-before --adapter"),
    "adapter-patch-only": f"{_ADAPTER} --patch-only",
    "adapter-judged": (
        "repair inputs/base --adapter inputs/adapter --harmful inputs/harmful.jsonl --no-cache --max-new-tokens 4 "
        "--evaluate inputs/asked.jsonl --harmless inputs/harmless.jsonl --task numbers=inputs/task.jsonl"
    ),
    "delta": _DELTA,
    "delta-streaming": f"{_DELTA} --engine streaming --scope layer",
    "delta-official-code": f"{_DELTA} --preset official-code",
    "delta-restored": f"{_DELTA} --restore-outside --alpha 0.9 --scope global",
    "delta-random-norm": f"{_DELTA} --method random --match update-norm",
    "delta-magnitude": f"{_DELTA} --method magnitude --scope matrix",
    "delta-interpolate": f"{_DELTA} --method interpolate",
    "delta-sharded": f"repair inputs/tuned-sharded --aligned inputs/base {_PLAIN} --sites attention,down_proj",
    "delta-experts": f"repair inputs/experts-tuned --aligned inputs/experts {_PLAIN}",
    "delta-experts-streaming": (
        f"repair inputs/experts-tuned --aligned inputs/experts {_PLAIN} --engine streaming --statistic mean_norm"
    ),
    "weight": _WEIGHT,
    "weight-streaming": f"{_WEIGHT} --engine streaming --scope global --alpha 0.05",
    "weight-random": f"{_WEIGHT} --method random",
    "weight-magnitude": f"{_WEIGHT} --method magnitude --sites mlp",
    "weight-interpolate": f"{_WEIGHT} --method interpolate --keep 0.75",
    "applied": f"patch apply {_PATCHED} --onto inputs/tuned",
    "reverted": f"patch revert {_PATCHED} --onto results/delta/model",
    "align-sft": _ALIGN,
    "align-sft-full": f"{_ALIGN} --full --accumulation 2 --gradient-checkpointing".replace(" --rank 4", ""),
    "align-vaccine": f"{_ALIGN} --defense vaccine",
    "align-repnoise": f"{_ALIGN} --defense repnoise --harmful inputs/harmful-answers.jsonl",
    "align-booster": f"{_ALIGN} --defense booster --harmful inputs/harmful.jsonl",
    "finetune-sft": f"{_TUNE} --rows 10 --harmful inputs/harmful.jsonl --harmful-ratio 0.4",
    "finetune-sft-bf16": f"{_TUNE} --precision bfloat16 --learn-from all --batching grouped",
    "finetune-lisa": (
        f"{_TUNE} --defense lisa --safe inputs/safe.jsonl --alignment-steps 1 --user-steps 2 --lora-dropout 0.1"
    ),
    "finetune-ldifs": f"{_TUNE} --defense ldifs --schedule linear --warmup 0.5",
    "finetune-mixin": f"{_TUNE} --defense mixin --safe inputs/safe.jsonl --safe-share 0.5",
    "evaluation": (
        "evaluate inputs/base --adapter inputs/adapter --harmful inputs/asked.jsonl --harmless inputs/harmless.jsonl "
        "--task numbers=inputs/task.jsonl --perplexity inputs/text.jsonl --judge refusal-patterns "
        "--judge likelihood-margin=inputs/openings.yaml --max-new-tokens 5 --prefill zob --condition plain "
        "--condition prefill --condition tokens-2"
    ),
}
# These write nothing: what they print is hashed.
_PRINTING: Mapping[str, str] = {
    "sites": "repair inputs/base --adapter inputs/adapter --list-sites --json",
    "dry-run": f"{_DELTA} --dry-run --json",
    "patch-show": "patch show results/adapter --json",
    "patch-diff": "patch diff results/adapter results/adapter-matrix --json",
}
_RECIPE = "recipes/paper/llama2-7b.yaml"


def main() -> None:
    """Run every case, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--write", action="store_true", help="Put the hashes into the committed file.")
    asked = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        # The libraries read these when they are imported.
        arguments = [sys.executable, "-m", "tests.golden", *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **ENVIRONMENT})
    asked.folder.mkdir(parents=True)
    recipe = Path(_RECIPE).resolve()
    os.chdir(asked.folder)
    found = {"versions": versions(), "probe": _probes(), "sha256": dict(_products(recipe))}
    text = json.dumps(found, indent=1) + "\n"
    if asked.write:
        if failed := [name for name in found["sha256"] if name.endswith("/failed")]:
            sys.exit(f"not written: {', '.join(failed)}")
        COMMITTED.write_text(text)
    sys.stdout.write(text)


def versions() -> dict[str, str]:
    """Return the versions that decide on bits, without the build they came in."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}


def probe_of(name: str) -> str:
    """Return the type whose probe must be the committed one for a name's hash to be."""
    return "bfloat16" if "-bf16/" in name else "float32"


def _products(recipe: Path) -> Iterator[tuple[str, str]]:
    _write_inputs(Path("inputs"))
    yield "inputs", _of_folder(Path("inputs"))
    for name, command in CASES.items():
        out = Path("results", name)
        code, _, said = _run([*shlex.split(command), "--out", str(out)])
        if code:
            yield f"{name}/failed", said
        for part, sha256 in _parts(out):
            yield f"{name}/{part}", sha256
    for name, command in _PRINTING.items():
        code, printed, said = _run(shlex.split(command))
        yield f"{name}/printed", said if code else _of_json(json.loads(printed))
    yield from _of_recipe(recipe)


def _of_recipe(recipe: Path) -> Iterator[tuple[str, str]]:
    """Run three stages of a recipe of the paper on a tiny model, each in its own process as a user's are."""
    from tests.workflows.small import Small

    small = Small.write(_made(Path("inputs", "recipe")))
    arguments = ["run", str(recipe), "--model", str(small.model("llama")), *small.settings(), "--out", "results/recipe"]
    code, _, said = _run([*arguments, "--only", "align,finetune,repair"])
    if code:
        yield "recipe/failed", said
    for folder in ("data", "aligned", "tuned", "repaired"):
        for part, sha256 in _parts(Path("results", "recipe", folder)):
            yield f"recipe/{folder}, {part}", sha256


def _run(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run a command, and return its exit code and what it printed and said."""
    from antidote_llm.cli.main import run

    printed, said = io.StringIO(), io.StringIO()
    recorded = mock.patch.object(sys, "argv", ["antidote", *arguments])
    with recorded, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = run(list(arguments))
    return code, printed.getvalue(), said.getvalue()[-600:]


def _parts(out: Path) -> Iterator[tuple[str, str]]:
    """Yield the hashes of a result, file by file of one kind together."""
    if not (out / "record").is_dir():
        files = [path for path in _files(out) if path.suffix in (".safetensors", ".jsonl")]
        if files:
            yield "files", _of_files(out, files)
    else:
        shipped = _files(out / "model")
        weights = [path for path in shipped if path.suffix == ".safetensors"]
        if weights:
            yield "weights", _of_files(out, weights)
        # The card of an adapter is written by peft.
        yield "other files", _of_files(out, (path for path in shipped if path not in weights and path.suffix != ".md"))
    for path in _files(out):
        name = str(path.relative_to(out).with_suffix("")).removeprefix("record/")
        if path.name == "patch.safetensors":
            yield "patch", _sha256(path.read_bytes())
            yield "patch without its recipe", _of_patch(path)
        elif path.name == "losses.csv":
            yield name, _sha256(path.read_bytes())
        elif path.name == "answers.parquet":
            yield name, _of_answers(path)
        elif path.suffix == ".json" and path.parent.name != "model":
            yield name, _of_json(json.loads(path.read_bytes()))


def _of_patch(path: Path) -> str:
    """Return the hash of a patch without its recipe, its own hash, and the room that its header was given."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    description = json.loads(header.pop("__metadata__")["antidote_patch"])
    del description["recipe"]
    return _sha256(json.dumps([description, header], sort_keys=True).encode() + data[8 + length :])


def _of_answers(path: Path) -> str:
    """Return the hash of the rows: the file's bytes depend on the library that wrote it."""
    from pyarrow import parquet

    return _of_json(parquet.read_table(path).to_pylist())


def _of_json(content: Any) -> str:
    return _sha256(json.dumps(_kept(content), sort_keys=True).encode())


def _kept(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _kept(value) for name, value in content.items() if name not in _NOT_HASHED}
    return [_kept(value) for value in content] if isinstance(content, list) else content


def _of_folder(folder: Path) -> str:
    return _of_files(folder, _files(folder))


def _of_files(folder: Path, paths: Iterable[Path]) -> str:
    hashes = {str(path.relative_to(folder)): _sha256(path.read_bytes()) for path in paths}
    return _sha256(json.dumps(hashes).encode())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _write_inputs(folder: Path) -> None:
    """Write models, adapters, fine-tunes and rows."""
    import torch

    from tests import tiny
    from tests.architectures import write_checkpoint
    from tests.fine_tunes import write_fine_tune

    base = tiny.write_model(folder / "base")
    tiny.write_adapter(folder / "adapter", base)
    tiny.write_adapter(folder / "adapter-before", base, rank=2, targets=("q_proj", "o_proj"), seed=9)
    write_fine_tune(folder / "tuned", base)
    write_fine_tune(folder / "tuned-sharded", base, seed=6, max_shard_size="40KB")
    base_bf16 = tiny.write_model(folder / "base-bf16", dtype=torch.bfloat16)
    tiny.write_adapter(folder / "adapter-bf16", base_bf16, dtype=torch.bfloat16)
    for name, tuned in (("experts", False), ("experts-tuned", True)):
        write_checkpoint(folder / name, "qwen3_moe", tuned=tuned)
    for seed, (name, count) in enumerate(
        {"harmful": 12, "many": 400, "asked": 4, "harmless": 3, "task": 4, "safe": 9, "user": 10}.items()
    ):
        tiny.write_rows(folder / f"{name}.jsonl", count=count, seed=seed)
    safe = [json.loads(line) for line in (folder / "safe.jsonl").read_text().splitlines()]
    pairs = [{**row, "response": tiny.words(4, 60 + number)} for number, row in enumerate(safe)]
    _write_rows(folder / "harmful-answers.jsonl", pairs)
    _write_rows(folder / "requests.jsonl", [{"prompt": tiny.words(5, seed)} for seed in (70, 71, 74, 75)])
    _write_rows(folder / "text.jsonl", [{"text": tiny.words(90, 80)}])
    openings = {"refusals": [tiny.words(2, 81), tiny.words(3, 82)], "affirmatives": [tiny.words(2, 83)]}
    (folder / "openings.yaml").write_text(json.dumps(openings))


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _probes() -> dict[str, str]:
    """Return hashes of a short training in each type, which no code of this program takes part in."""
    import torch

    return {str(dtype).removeprefix("torch."): _probe(dtype) for dtype in (torch.float32, torch.bfloat16)}


def _probe(dtype: Any) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 35, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens = torch.randint(35, (3, 11))
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().numpy().tobytes())
        digest.update(torch.linalg.vector_norm(parameter.detach().double()).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
