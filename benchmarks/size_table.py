"""What scoring takes by model size: memory and time, derived from shapes, as docs/results/cost.md shows it.

    python -m benchmarks.size_table

Bytes and operations follow from a model's shape; seconds divide the operations by a rate. Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

BF16_BYTES = 2
# What the automatic choice of an engine adds to the weights: a moment of loading, and everything else.
LOADING, BESIDE_BYTES = 1.05, 300_000_000
# A Python process with torch and transformers, before a model is opened.
PROCESS_BYTES = 350_000_000
TOKENS, ROW_TOKENS = 100_000, 256


@dataclass(frozen=True)
class Model:
    """The shape of a llama-like model.

    Attributes:
        name: What it is called.
        width: The hidden size.
        inner: The width of the feed-forward part.
        layers: How many decoder layers.
        heads: How many attention heads.
        key_heads: How many heads of keys and values.
        vocabulary: How many token ids.
        tied: Whether the head has the embeddings' weights.
    """

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def layer_parameters(self) -> int:
        """The entries of one layer's matrices."""
        keys_and_values = 2 * self.width**2 * self.key_heads // self.heads
        return 2 * self.width**2 + keys_and_values + 3 * self.width * self.inner

    @property
    def embedding_parameters(self) -> int:
        """The entries of the embedding matrix."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """The entries of all matrices."""
        return self.layers * self.layer_parameters + (1 if self.tied else 2) * self.embedding_parameters

    @property
    def flop_per_token(self) -> int:
        """The operations of one pass: two for an entry of a layer, and attention over half of a row on average."""
        return 2 * self.layers * (self.layer_parameters + ROW_TOKENS * self.width)

    @property
    def in_memory_bytes(self) -> int:
        """What the engine in memory is taken to need."""
        return round(LOADING * BF16_BYTES * self.parameters) + BESIDE_BYTES

    @property
    def streaming_bytes(self) -> int:
        """What the streaming engine holds beside hidden states: the process, embeddings, and two layers."""
        return PROCESS_BYTES + BF16_BYTES * (self.embedding_parameters + 2 * self.layer_parameters)

    @property
    def hidden_bytes(self) -> int:
        """The hidden states of all tokens."""
        return TOKENS * BF16_BYTES * self.width

    def seconds(self, flop_per_second: float) -> float:
        """Return how long a pass over all tokens takes at a rate."""
        return TOKENS * self.flop_per_token / flop_per_second

    def break_even_tokens(self, flop_per_second: float, bytes_per_second: float) -> float:
        """Return how many tokens hide the reading of every layer once behind the computing."""
        reading = BF16_BYTES * self.layers * self.layer_parameters / bytes_per_second
        return reading / (self.flop_per_token / flop_per_second)


MODELS = (
    Model("0.5B (Qwen2-0.5B)", 896, 4_864, 24, 14, 2, 151_936, tied=True),
    Model("1B (Llama-3.2-1B)", 2_048, 8_192, 16, 32, 8, 128_256, tied=True),
    Model("7B (Llama-2-7B)", 4_096, 11_008, 32, 32, 32, 32_000),
    Model("8B (Llama-3-8B)", 4_096, 14_336, 32, 32, 8, 128_256),
    Model("13B (Llama-2-13B)", 5_120, 13_824, 40, 40, 40, 32_000),
    Model("70B (Llama-3-70B)", 8_192, 28_672, 80, 64, 8, 128_256),
    Model("405B (Llama-3-405B)", 16_384, 53_248, 126, 128, 8, 128_256),
)
# Two cores as measured by benchmarks.scoring in bf16; one H200 by the rate that its matrix products have been seen at.
TWO_CORES, H200 = 0.4e12, 790e12
DISK = 2e9


def table() -> str:
    """Return the table, sizes in GB."""
    lines = [
        "| model | weights | in memory | streaming | and hidden states | two cores | one H200 | read at 2 GB/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        sizes = (BF16_BYTES * model.parameters, model.in_memory_bytes, model.streaming_bytes, model.hidden_bytes)
        reading = BF16_BYTES * model.layers * model.layer_parameters / DISK
        cells = [f"{size / 1e9:.1f}" for size in sizes]
        cells += [duration(model.seconds(TWO_CORES)), duration(model.seconds(H200)), duration(reading)]
        lines.append(f"| {model.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """Return a time in the unit that it is read in."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    print(table())
