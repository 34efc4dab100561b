"""Command lines with options that hold anything but what they should."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.fuzz.scraps import NUMBERS, text
from tests.fuzz.written import Written

# Beside the case's own files, the folder holds a tiny model, an adapter on it, rows, and a finished repair.
BASE, ADAPTER, HARMFUL, REPAIRED = "base", "adapter", "harmful.jsonl", "repaired"
_REPAIR = ("repair", BASE, "--adapter", ADAPTER, "--harmful", HARMFUL, "--evaluate", "none")
_TRAINED = ("--rank", "2", "--max-steps", "1", "--max-length", "16")
# What ends early where nothing is wrong: nothing but the reading of options is looked at.
_WHOLE: tuple[tuple[str, ...], ...] = (
    (*_REPAIR, "--dry-run"),
    (*_REPAIR, "--list-sites"),
    (*_REPAIR, "--out", "new"),
    ("repair", BASE, "--adapter", ADAPTER, "--harmful", HARMFUL, "--max-new-tokens", "2", "--dry-run"),
    ("evaluate", BASE, "--harmful", HARMFUL, "--max-new-tokens", "1", "--out", "new"),
    ("align", BASE, "--data", HARMFUL, *_TRAINED, "--plan", "--flops", "1e12"),
    ("finetune", BASE, "--data", HARMFUL, *_TRAINED, "--plan", "--flops", "1e12"),
    ("finetune", BASE, "--data", HARMFUL, *_TRAINED, "--out", "new"),
    ("patch", "show", REPAIRED),
    ("patch", "apply", REPAIRED, "--onto", ADAPTER, "--out", "new"),
    ("patch", "revert", REPAIRED, "--onto", f"{REPAIRED}/model", "--out", "new"),
    ("patch", "diff", REPAIRED, REPAIRED),
)
_REPAIRING = (
    *(
        "--aligned",
        "--target",
        "--sites",
        "--restore-outside",
        "--method",
        "--preset",
        "--alpha",
        "--scope",
        "--strength",
    ),
    *("--norm-power", "--keep", "--seed", "--tokens", "--calibration", "--harmful-rows", "--data-seed", "--patch-only"),
    *(
        "--show-answers",
        "--engine",
        "--max-ram",
        "--max-vram",
        "--max-disk",
        "--hard-links",
        "--no-cache",
        "--evaluate",
    ),
)
_EVALUATING = (
    *("--harmless", "--task", "--task-rows", "--task-seed", "--task-match", "--judge", "--max-new-tokens", "--system"),
    *("--task-max-new-tokens", "--template", "--prefill", "--condition", "--harder", "--thinking", "--backend"),
    *("--perplexity", "--perplexity-window", "--perplexity-stride", "--lm-eval"),
)
_TRAINING = (
    *("--data", "--rows", "--defense", "--learning-rate", "--epochs", "--max-steps", "--batch-size", "--accumulation"),
    *("--weight-decay", "--max-gradient-norm", "--schedule", "--warmup", "--max-length", "--batching", "--learn-from"),
    *("--rank", "--lora-alpha", "--lora-targets", "--lora-dropout", "--full", "--merge", "--precision", "--seed"),
    *("--gradient-checkpointing", "--save-every", "--save-dtype", "--report-to", "--data-seed", "--flops", "--plan"),
    *("--harmful", "--harmful-rows", "--harmful-ratio", "--apart-from", "--safe", "--safe-rows", "--lamb", "--rho"),
)
_MODEL = (
    "--adapter",
    "--harmful",
    "--tokenizer",
    "--dtype",
    "--device",
    "--trust-remote-code",
    "--json",
    "--out",
    "--help",
)
_OF = {"repair": (*_REPAIRING, *_EVALUATING, *_MODEL), "evaluate": (*_EVALUATING, *_MODEL)}
_OF |= dict.fromkeys(("align", "finetune"), (*_TRAINING, *_MODEL))
_OF |= {"patch": ("--onto", "--out", "--hard-links", "--json", "--help")}


def cases(chance: random.Random) -> Iterator[Written]:
    """Return an endless supply of command lines, each of a sound one with something else in it."""
    while True:
        words = list(chance.choice(_WHOLE))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _change(words, chance)
        # A program's arguments end at a zero byte, and half a surrogate pair stands for a byte that is not UTF-8.
        sound = (word.replace("\0", "").replace("\ud800", "\udc80") for word in words)
        yield Written(f"command line of {words[0][:20]}", {}, tuple(sound))


def _change(words: list[str], chance: random.Random) -> None:
    known = _OF.get(words[0], ("--zorbik",))
    kind = chance.choice(("add", "add", "add", "add", "replace", "replace", "remove", "swap"))
    at = chance.randrange(len(words))
    if kind == "add":
        words += [chance.choice(known), *([_value(chance)] if chance.random() < 0.9 else [])]
    elif kind == "replace":
        words[at] = _value(chance)
    elif kind == "remove" and len(words) > 1:
        del words[at]
    else:
        other = chance.randrange(len(words))
        words[at], words[other] = words[other], words[at]


def _value(chance: random.Random) -> str:
    own = (
        BASE,
        ADAPTER,
        HARMFUL,
        REPAIRED,
        f"{BASE}/config.json",
        f"{ADAPTER}/",
        f"./{BASE}/../{BASE}",
        "new/new",
        ".",
    )
    return chance.choice((text(chance), chance.choice(NUMBERS), chance.choice(own)))
