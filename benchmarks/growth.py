"""How the cost of scoring grows with tokens, width, depth, rank and micro-batch, on both sides of a default.

    python -m benchmarks.growth --work runs/bench/models --out runs/bench/growth.json

One property of the middle model is halved and doubled (the rank: an eighth and four times) at a time. Scoring is timed
beside a bare forward pass by the same plan, in turns; figures are medians over rounds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.io.files import write_json, write_text
from benchmarks.interleaved import Work, medians, ratio, timed
from benchmarks.random_llama import Shape, opened, random_rows, write_checkpoint
from benchmarks.scoring import Subject

MIDDLE = Shape(width=512, inner=1376, layers=8, heads=8, rank=64, rows=64, tokens=6_400)
SMALL = Shape(width=128, inner=344, layers=4, heads=4, rank=16, rows=64, tokens=3_200)


def variants(middle: Shape, batch_tokens: int) -> dict[str, tuple[Shape, int]]:
    """Return shapes with their micro-batches, by what is changed."""
    found = {"as it is": (middle, batch_tokens)}
    for factor, word in ((0.5, "half"), (2, "twice")):
        found |= {
            f"{word} the tokens": (scaled(middle, factor, "rows", "tokens"), batch_tokens),
            f"{word} the row length": (scaled(middle, factor, "tokens"), batch_tokens),
            f"{word} the width": (scaled(middle, factor, "width", "inner", "heads"), batch_tokens),
            f"{word} the layers": (scaled(middle, factor, "layers"), batch_tokens),
            f"{word} the micro-batch": (middle, round(batch_tokens * factor)),
        }
    for factor, word in ((0.125, "an eighth of"), (4, "four times")):
        found[f"{word} the rank"] = (scaled(middle, factor, "rank"), batch_tokens)
    return found


def scaled(shape: Shape, factor: float, *names: str) -> Shape:
    """Multiply some properties of a shape."""
    return replace(shape, **{name: round(getattr(shape, name) * factor) for name in names})


def main() -> None:
    """Time every variant, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps the models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=CalibrationSettings().batch_tokens)
    parser.add_argument("--small", action="store_true", help="around a smaller model")
    arguments = parser.parse_args()
    middle = SMALL if arguments.small else MIDDLE
    found = []
    for name, (shape, batch_tokens) in variants(middle, arguments.batch_tokens).items():
        found.append({"variant": name, **measured(shape, batch_tokens, arguments.work, arguments.repeats)})
        print(name, found[-1]["summary"]["ours"], flush=True)
    write_json(arguments.out, {"middle": vars(middle), "variants": found})
    write_text(arguments.out.with_suffix(".md"), markdown(found))
    print(markdown(found))


def measured(shape: Shape, batch_tokens: int, work: Path, repeats: int) -> dict[str, Any]:
    """Time scoring of a shape beside a bare pass."""
    folder = work / f"{shape.width}x{shape.layers}r{shape.rank}"
    write_checkpoint(replace(shape, rows=0, tokens=0), folder)
    subject = Subject(opened(folder), random_rows(shape), batch_tokens)
    seconds = timed({"bare pass": subject.bare(batch_tokens), "ours": Work(subject.scored)}, repeats)
    parts = medians({name: times[1:] for name, times in subject.parts.items()})
    return {
        "shape": vars(shape),
        "batch_tokens": batch_tokens,
        "ratio": ratio(seconds, "ours", "bare pass"),
        "flop": 2 * shape.linear_parameters * shape.tokens,
        "parts": parts,
        "summary": medians(seconds),
    }


def markdown(variants: list[dict[str, Any]]) -> str:
    """Return the table, with every cost beside that of the middle."""
    middle = variants[0]
    lines = [
        "| | seconds | beside the first row | arithmetic beside the first row | bare passes | of it selection |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for found in variants:
        seconds = found["summary"]["ours"]["median"]
        cells = (
            f"{seconds:.3f}",
            f"{seconds / middle['summary']['ours']['median']:.2f}",
            f"{found['flop'] / middle['flop']:.2f}",
            f"{found['ratio']:.2f}",
            f"{found['parts']['select']['median']:.3f}",
        )
        lines.append(f"| {found['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
