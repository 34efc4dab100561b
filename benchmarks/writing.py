"""What it costs to write a checkpoint with a tenth of its entries zeroed: copies edited in place, beside saving anew.

    python -m benchmarks.writing --work runs/writing --out docs/results/writing.json

One bf16 file of random matrices. The plain way loads the state dict, zeroes, and saves it with safetensors: no patch,
no hash. Ours copies the file, edits the copy block by block, hashes it, and writes the patch that undoes it; then it
takes the patch off again to verify it; or it writes the patch alone. All zero the same entries and flush what they
wrote. Every run is a process of its own, the ways take turns, the figures are medians. Time starts when the source has
been hashed, which a repair does when it opens a model; memory is the process's peak above what it held then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from antidote_llm.io.files import sha256_file, write_json, write_text
from antidote_llm.io.resources import peak_rss_bytes
from antidote_llm.io.safetensors_files import TensorFile, open_tensor_file
from antidote_llm.patching.apply import require_reverts
from antidote_llm.patching.patch import read_patch
from antidote_llm.patching.patched_copies import PatchedCopies

NAME, SHARE = "model.safetensors", 0.1
PLAIN = "load, zero, save_file"


def main() -> None:
    """Run every way in turns, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="keeps the checkpoint; what is written there is removed"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--matrices", type=int, default=48)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=512, help="how many rows a block has")
    parser.add_argument("--small", action="store_true", help="4 matrices, 2 repeats: less than a minute")
    parser.add_argument("--one", choices=[*WAYS, "build"], help="run one in this process and print its figures")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.matrices, arguments.repeats = 4, 2
    if arguments.one:
        torch.set_num_threads(1)
        print(json.dumps(measured(arguments.one, arguments)))
        return
    apart("build", arguments)
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.repeats):
        for way in WAYS:
            rounds.append({"round": number, "way": way, **apart(way, arguments)})
            print(json.dumps(rounds[-1]), flush=True)
    shape = {name: getattr(arguments, name) for name in ("matrices", "width", "rows", "repeats")}
    summary = {way: summarised([each for each in rounds if each["way"] == way]) for way in WAYS}
    plain = summary[PLAIN]
    for found in summary.values():
        found["seconds_of_plain"] = found["seconds"] / plain["seconds"]
        found["peak_of_plain"] = found["peak_bytes"] / plain["peak_bytes"]
    model_bytes = source(arguments).stat().st_size
    write_json(arguments.out, {"model_bytes": model_bytes, "shape": shape, "summary": summary, "rounds": rounds})
    write_text(arguments.out.with_suffix(".md"), markdown(summary))
    print(markdown(summary))


def apart(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the figures of one run in a process of its own."""
    # What was written before is not to be flushed on this one's time.
    shutil.rmtree(arguments.work / "out", ignore_errors=True)
    os.sync()
    options = ("work", "out", "matrices", "width", "rows")
    settings = [part for name in options for part in (f"--{name}", str(getattr(arguments, name)))]
    command = [sys.executable, "-m", "benchmarks.writing", "--one", way, *settings]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def measured(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one way, and return its time on the clock and on the processors, and its peak of memory."""
    path, out = source(arguments), arguments.work / "out"
    if way == "build":
        if not path.is_file():
            build(path, arguments)
        return {}
    file = open_tensor_file(path)
    known = {NAME: sha256_file(path)}
    kept_HI = torch.rand(arguments.rows, arguments.width, generator=torch.Generator().manual_seed(0)) >= SHARE
    held_bytes, start, processor_start = peak_rss_bytes(), time.perf_counter(), time.process_time()
    WAYS[way](file, out, kept_HI, known)
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor_start,
        "peak_bytes": peak_rss_bytes() - held_bytes,
    }


def source(arguments: argparse.Namespace) -> Path:
    """Return where the checkpoint of this shape lies."""
    folder: Path = arguments.work / f"{arguments.matrices}x{arguments.width}"
    return folder / NAME


def build(path: Path, arguments: argparse.Namespace) -> None:
    """Write the checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    shape, partial = (arguments.width, arguments.width), path.with_suffix(".partial")
    save_file({f"layers.{i}.weight": torch.randn(shape).bfloat16() for i in range(arguments.matrices)}, partial)
    partial.replace(path)


def plain(file: TensorFile, out: Path, kept_HI: Tensor, _: Mapping[str, str]) -> None:
    """Load the state dict, zero in memory, save."""
    state = load_file(file.path)
    for weight_OI in state.values():
        for begin in range(0, len(weight_OI), len(kept_HI)):
            block_HI = weight_OI[begin : begin + len(kept_HI)]
            block_HI *= kept_HI[: len(block_HI)]
    out.mkdir()
    save_file(state, out / NAME)
    with (out / NAME).open("rb") as stream:
        os.fsync(stream.fileno())


def patch_only(
    file: TensorFile, out: Path, kept_HI: Tensor, known: Mapping[str, str], model: Path | None = None
) -> None:
    """Write the patch, and a copy that is edited in place where one is asked for."""
    keys = [(NAME, key) for key in file.entries]
    with PatchedCopies({NAME: file}, keys, {}, model, out / "patch.safetensors", known_sha256=known) as writer:
        for name, key in keys:
            writer.edit(name, key, zeroed(file, key, kept_HI))
        writer.finish()


def copies(file: TensorFile, out: Path, kept_HI: Tensor, known: Mapping[str, str]) -> None:
    """Edit a copy in place, and write the patch."""
    patch_only(file, out, kept_HI, known, out / "model")


def verified(file: TensorFile, out: Path, kept_HI: Tensor, known: Mapping[str, str]) -> None:
    """Edit a copy in place, write the patch, and take it off again."""
    copies(file, out, kept_HI, known)
    require_reverts(read_patch(out / "patch.safetensors"), out / "model")


def zeroed(file: TensorFile, key: str, kept_HI: Tensor) -> Iterator[Tensor]:
    """Read a matrix in blocks of rows, and zero in each."""
    entry = file.entries[key]
    with file.stream() as stream:
        stream.seek(entry.begin)
        for begin in range(0, entry.shape[0], len(kept_HI)):
            kept = kept_HI[: entry.shape[0] - begin]
            read = bytearray(kept.numel() * torch.bfloat16.itemsize)
            stream.readinto(read)
            yield torch.frombuffer(read, dtype=torch.bfloat16).view_as(kept).mul_(kept)


WAYS: dict[str, Callable[[TensorFile, Path, Tensor, Mapping[str, str]], None]] = {
    PLAIN: plain,
    "copy edited in place, and patch": copies,
    "the same, verified": verified,
    "patch only": patch_only,
}


def summarised(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the medians, and the extremes of the time."""
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name not in ("round", "way")}
    seconds = [run["seconds"] for run in runs]
    return found | {"seconds_min": min(seconds), "seconds_max": max(seconds)}


def markdown(summary: dict[str, dict[str, float]]) -> str:
    """Return the table, with ratios to the plain way."""
    lines = [
        "| way | seconds | of plain | processor seconds | peak memory, MB | of plain |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for way, found in summary.items():
        lines.append(
            f"| {way} | {found['seconds']:.2f} ({found['seconds_min']:.2f} to {found['seconds_max']:.2f}) | "
            f"{found['seconds_of_plain']:.2f} | {found['processor_seconds']:.2f} | {found['peak_bytes'] / 1e6:,.0f} | "
            f"{found['peak_of_plain']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
