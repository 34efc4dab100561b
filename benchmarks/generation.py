"""What answering prompts costs beside the published loop, one prompt at a time: time and agreement, in one run.

    python -m benchmarks.generation --out docs/results/generation.json

The published evaluation asks one prompt after the other with transformers' own ``generate`` in float32. Beside it stand
``generate`` on sorted batches and the slots of this package, which take turns in every round; the figures are medians
over rounds. The miniature is asked its held-out harmful requests and the tests of its tasks; a llama of random weights
gets prompts of log-normal length behind a preamble that all share, as the Alpaca template's. An answer that differs
from the one of batch 1 is followed to its first other token, and there the two likeliest must lie within rounding.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.evaluation.generation import generate, static_batches
from antidote_llm.evaluation.prompts import Limits, Row, stop_ids
from antidote_llm.io.files import write_json, write_text
from antidote_llm.miniature.build import build
from antidote_llm.models.load import load_model

Answers: TypeAlias = list[list[int]]
# Logits of float32 that lie closer than this are equal within rounding.
TIE = 1e-4
VOCABULARY, PREAMBLE = 8192, 40
# So many tokens end an answer of the random llama that its answers are of every length.
RANDOM_EOS = tuple(range(1, 120))


@dataclass(frozen=True)
class Work:
    """A model and what it is asked."""

    name: str
    model: Any
    prompts_ids: list[list[int]]
    max_new_tokens: int
    eos_ids: tuple[int, ...]


def main() -> None:
    """Let the sides answer in turns, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--small", action="store_true", help="a tiny llama of random weights alone, in seconds")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        works = [random_llama("1M", 128, 4, 48, 48)] if arguments.small else full_size(Path(folder))
    found = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for work in works:
            found.append({"threads": threads, **measured(work, arguments.rounds)})
            print(json.dumps(found[-1]), flush=True)
    write_json(arguments.out, {"results": found})
    write_text(arguments.out.with_suffix(".md"), markdown(found))
    print(markdown(found))


def full_size(folder: Path) -> list[Work]:
    """Return the miniature's attacked model with its adapter, and the random llama."""
    mini = build(folder / "miniature")
    opened = load_model(str(mini.aligned), str(mini.attacked), dtype="float32")
    renderer = Renderer(opened.tokenizer)
    records = [row for path in (mini.heldout, *mini.task_tests.values()) for row in read_records(path)]
    assert opened.tokenizer is not None
    eos_ids = stop_ids(opened.model, opened.tokenizer, renderer)
    miniature = Work("miniature, LoRA", opened.model, renderer.prompts(records), 40, eos_ids)
    return [miniature, random_llama("18M", 384, 8, 64, 256)]


def random_llama(name: str, width: int, layers: int, count: int, max_new_tokens: int) -> Work:
    """Return a llama of random weights, and prompts of random tokens with the lengths of real ones."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    draw = random.Random(0)
    preamble = [draw.randrange(200, VOCABULARY) for _ in range(PREAMBLE)]
    lengths = [min(384, max(8, int(draw.lognormvariate(3.4, 0.6)))) for _ in range(count)]
    prompts = [preamble + [draw.randrange(200, VOCABULARY) for _ in range(length)] for length in lengths]
    return Work(name, LlamaForCausalLM(config).eval(), prompts, max_new_tokens, RANDOM_EOS)


def one_by_one(work: Work) -> Answers:
    """Answer as the published evaluation does: every prompt in a call of its own."""
    answers = []
    with torch.inference_mode():
        for ids in work.prompts_ids:
            input_ids_BT = torch.tensor([ids])
            output_BT = work.model.generate(
                input_ids=input_ids_BT,
                attention_mask=torch.ones_like(input_ids_BT),
                do_sample=False,
                max_new_tokens=work.max_new_tokens,
                eos_token_id=list(work.eos_ids),
                pad_token_id=0,
            )
            answers.append([token for token in output_BT[0, len(ids) :].tolist() if token not in work.eos_ids])
    return answers


def sorted_batches(work: Work) -> Answers:
    """Answer with transformers' ``generate`` on batches of prompts of like length."""
    rows = {prompt: Row(prompt) for prompt in map(tuple, work.prompts_ids)}
    with torch.inference_mode():
        for _ in static_batches(
            work.model, list(rows.values()), Limits(work.max_new_tokens, work.eos_ids, 0, 64, 16_384)
        ):
            pass
    return [rows[tuple(prompt)].answer for prompt in work.prompts_ids]


def slots(work: Work) -> Answers:
    """Answer as this package does."""
    return generate(work.model, work.prompts_ids, max_new_tokens=work.max_new_tokens, eos_ids=work.eos_ids)


SIDES: dict[str, Callable[[Work], Answers]] = {"one by one": one_by_one, "batches": sorted_batches, "slots": slots}


def measured(work: Work, rounds: int) -> dict[str, Any]:
    """Return the time of every side in every round, their medians, ratios to the published loop, and agreement."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    answers: dict[str, Answers] = {}
    for _ in range(rounds):
        for name, side in SIDES.items():
            start = time.perf_counter()
            found = side(work)
            seconds[name].append(time.perf_counter() - start)
            assert answers.setdefault(name, found) == found, f"{name}: the same call gave other answers"
    alone = answers["one by one"]
    return {
        "work": work.name,
        "parameters": sum(each.numel() for each in work.model.parameters()),
        "prompts": len(work.prompts_ids),
        "prompt_tokens": sum(map(len, work.prompts_ids)),
        "answer_tokens": sum(map(len, alone)),
        "seconds": seconds,
        "median_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "ratio": {
            name: statistics.median(a / b for a, b in zip(seconds["one by one"], taken, strict=True))
            for name, taken in seconds.items()
        },
        "differing": {name: differing(work, alone, found) for name, found in answers.items() if name != "one by one"},
    }


def differing(work: Work, alone: Answers, found: Answers) -> dict[str, float]:
    """Count the answers that differ from those of batch 1, and those among them where the two likeliest tie."""
    gaps = [
        gap(work, ids, first, second)
        for ids, first, second in zip(work.prompts_ids, alone, found, strict=True)
        if first != second
    ]
    ties = sum(each < TIE for each in gaps)
    return {"answers": len(gaps), "ties": ties, "not_ties": len(gaps) - ties, "largest_gap": max(gaps, default=0.0)}


@torch.inference_mode()
def gap(work: Work, ids: Sequence[int], first: Sequence[int], second: Sequence[int]) -> float:
    """Return how far the two likeliest tokens lie apart, at batch 1, where two answers part."""
    same = next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    logits_V = work.model(torch.tensor([[*ids, *first[:same]]])).logits[0, -1]
    best, next_best = logits_V.topk(2).values.tolist()
    return float(best - next_best)


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """Return one table: a model and a number of threads a row."""
    lines = [
        "| model | threads | prompts | answers, tokens | one by one, s | batches, s | slots, s | times faster "
        "| differ from batch 1 | of these no tie |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        times = " | ".join(f"{each['median_seconds'][name]:.2f}" for name in SIDES)
        apart = each["differing"]["slots"]
        lines.append(
            f"| {each['work']} | {each['threads']} | {each['prompts']} | {each['answer_tokens']} | {times} "
            f"| {each['ratio']['slots']:.1f} | {apart['answers']} | {apart['not_ties']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
