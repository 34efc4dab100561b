"""Hashes of a short training of the miniature: the same on every processor under the settings of `antidote demo`.

    python -m benchmarks.rounding
    python -m benchmarks.rounding --as-is
    qemu-x86_64 -cpu Haswell .venv/bin/python -m benchmarks.rounding --steps 3

An emulator of other processors (QEMU's user mode) shows what they compute. `--as-is` leaves the libraries' choice of
instructions to them, as every other command does, and shows what the settings cost in time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from antidote_llm.io.reproducible_arithmetic import round_alike, rounding

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    """Train, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--as-is", action="store_true", help="leave the instructions to the libraries")
    given = parser.parse_args()
    if not given.as_is:
        round_alike()
    print(json.dumps(hashes(given.steps)))


def hashes(steps: int) -> dict[str, object]:
    """Return what is in force, and the hashes of some operations and of a trained model."""
    # torch reads the settings when it is imported.
    import torch

    from antidote_llm.data.rendering import Renderer
    from antidote_llm.miniature.architectures import untrained_model
    from antidote_llm.miniature.recipe import Recipe
    from antidote_llm.miniature.tokenizer import build_tokenizer
    from antidote_llm.miniature.world import World
    from antidote_llm.training.batches import examples_of
    from antidote_llm.training.trainer import train

    torch.manual_seed(0)
    first_MK, second_KN = torch.randn(513, 77), torch.randn(77, 300)
    tokenizer, settings = build_tokenizer(), Recipe().pretraining
    model = untrained_model("llama", tokenizer, 0)
    before = hash_of(model.parameters())
    rows = Renderer(tokenizer).rows(World(0).pretraining(settings.batch_size * steps))
    start = time.process_time()
    losses = train(model, examples_of(rows, settings), settings).losses
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "settings": rounding(),
        "product": hash_of([first_MK @ second_KN]),
        "functions": hash_of([first_MK.exp(), first_MK.tanh(), first_MK.softmax(1), first_MK.sum(0)]),
        "random": hash_of([torch.rand(1000), torch.randn(1000), torch.randperm(1000)]),
        "untrained": before,
        "trained": hash_of(model.parameters()),
        "last_loss": losses[-1],
        "training_processor_seconds": time.process_time() - start,
    }


def hash_of(tensors: Iterable[Tensor]) -> str:
    """Return the first characters of a hash over all bits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
