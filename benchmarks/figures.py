"""Draws the figures of README.md and docs/: two from committed results, two of how things fit together.

    python -m benchmarks.figures

Each figure is an SVG file that needs no script, font file or network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "figures"
RESULTS = ROOT / "docs" / "results"

INK, GREY, PALE, BAND = "#1b1f24", "#59636e", "#d1d9e0", "#f6f8fa"
HARM, SKILL, BLUE = "#c2410c", "#0f766e", "#1d4ed8"
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


# As the linter's contract in pyproject.toml has them, without the modules at the bottom that belong to no room.
LAYERS = (
    ("cli",),
    ("workflows",),
    ("report", "miniature"),
    ("decision",),
    ("alignment", "finetuning", "repairs", "evaluation"),
    ("training", "calibration", "patching"),
    ("models", "data"),
    ("io",),
)


def text(x: float, y: float, words: str, size: int = 14, color: str = INK, more: str = "") -> str:
    """Return a line of text whose baseline begins at (x, y)."""
    return f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{color}' {more}>{escape(words)}</text>"


def centred(x: float, y: float, words: str, size: int = 14, color: str = INK, more: str = "") -> str:
    """Return a line of text centred at x."""
    return text(x, y, words, size, color, f"text-anchor='middle' {more}".strip())


def box(x: float, y: float, width: float, height: float, stroke: str = GREY, fill: str = BAND) -> str:
    """Return a box with round corners."""
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='8' "
        f"fill='{fill}' stroke='{stroke}' stroke-width='1.5'/>"
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return an arrow from one point to another."""
    return (
        f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{GREY}' stroke-width='1.5' "
        "marker-end='url(#arrow)'/>"
    )


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return a whole SVG document on a white ground, with its title for screen readers."""
    marker = (
        "<defs><marker id='arrow' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
        f"orient='auto-start-reverse'><path d='M 0 0 L 10 5 L 0 10 z' fill='{GREY}'/></marker></defs>"
    )
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"role='img' {FONT}>",
        f"<title>{escape(title)}</title>",
        marker,
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def stages() -> str:
    """Return the paper's three stages, and what each does to harm and skill."""
    rows = (
        ("1  Alignment", "antidote align", ("The model learns to refuse", "harmful requests.")),
        ("2  Fine-tuning", "antidote finetune", ("A user trains it on own rows.", "A few harmful ones break it.")),
        ("3  Repair", "antidote repair", ("One pass over harmful rows,", "no training, reversible.")),
    )
    models = ("base", "aligned", "attacked", "repaired")
    notes = (("answers", "everything"), ("refuses", "harm"), ("new skill,", "harm too"), ("refuses", "again"))
    parts = []
    for index, (name, note) in enumerate(zip(models, notes, strict=True)):
        x = 52 + index * 252
        color = {"aligned": SKILL, "attacked": HARM, "repaired": BLUE}.get(name, GREY)
        parts += [f"<circle cx='{x}' cy='172' r='40' fill='#ffffff' stroke='{color}' stroke-width='3'/>"]
        parts += [centred(x, 177, name, 14, color, "font-weight='600'")]
        parts += [centred(x, 230 + 17 * line, words, 13, GREY) for line, words in enumerate(note)]
    for index, (title, command, words) in enumerate(rows):
        left, middle = 74 + index * 252, 178 + index * 252
        parts += [box(left, 16, 208, 106), text(left + 14, 42, title, 16, INK, "font-weight='600'")]
        parts += [text(left + 14, 66 + 17 * line, part, 13, GREY) for line, part in enumerate(words)]
        parts += [text(left + 14, 108, command, 13, INK, "font-family='ui-monospace, Menlo, Consolas, monospace'")]
        parts += [arrow(middle - 82, 172, middle + 80, 172)]
        parts += [f"<line x1='{middle}' y1='122' x2='{middle}' y2='168' stroke='{PALE}' stroke-width='1.5'/>"]
    return svg(872, 262, "The three stages: alignment, fine-tuning, repair", parts)


def rooms() -> str:
    """Return the way of the data through the rooms of the package, and which room may import which."""
    steps = (
        ("models", "load a checkpoint,", "find its sites"),
        ("calibration", "moments of each", "site's input"),
        ("repairs", "score or solve,", "select, edit"),
        ("patching", "one patch,", "reversible"),
        ("evaluation", "same prompts,", "before and after"),
        ("report", "one page,", "no network"),
    )
    parts = [text(16, 28, "The way of the data: each arrow is one call, and nothing goes back", 15, INK)]
    for index, (name, first, second) in enumerate(steps):
        x = 16 + index * 148
        parts += [box(x, 46, 124, 84), text(x + 10, 70, name, 15, INK, "font-weight='600'")]
        parts += [text(x + 10, 93, first, 12, GREY), text(x + 10, 110, second, 12, GREY)]
        if index:
            parts.append(arrow(x - 24, 88, x - 2, 88))
    parts.append(text(16, 172, "The layers: a room imports from the rows below it, never from above", 15, INK))
    for index, names in enumerate(LAYERS):
        y, width = 186 + index * 34, (864 - 8 * (len(names) - 1)) / len(names)
        for place, name in enumerate(names):
            left = 16 + place * (width + 8)
            parts += [box(left, y, width, 28, PALE), centred(left + width / 2, y + 19, name, 14)]
    return svg(896, 470, "The rooms of the package", parts)


def _axis(x: float, y: float, width: float, height: float, label: str) -> list[str]:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        line = y + height - height * percent / 100
        parts.append(f"<line x1='{x}' y1='{line:g}' x2='{x + width}' y2='{line:g}' stroke='{PALE}'/>")
        parts.append(text(x - 8, line + 4, str(percent), 12, GREY, "text-anchor='end'"))
    middle = y + height / 2
    turned = f"transform='rotate(-90 {x - 44:g} {middle:g})'"
    return [*parts, centred(x - 44, middle, label, 13, GREY, turned)]


def outcome() -> str:
    """Return harm and new skill of the demo's models, mean and 95 % interval over five seeds."""
    results = json.loads((RESULTS / "demo_seeds.json").read_text(encoding="utf-8"))
    models = (
        ("aligned", "aligned", "stage 1"),
        ("attacked", "attacked", "stage 2"),
        ("antidote", "Antidote", "alpha 0.2"),
        ("interpolate", "shrunk", "control: equal norm"),
        ("random", "random", "control: equal count"),
    )
    left, top, width, height = 76, 56, 700, 220
    parts = _axis(left, top, width, height, "percent")
    parts += _key(left + 4, 24, ((HARM, "harmful score (less is better)"), (SKILL, "new skill (more is better)")))
    for index, (name, label, note) in enumerate(models):
        middle = left + 70 + index * 140
        for shift, metric, color in ((-34, "harmful_score", HARM), (4, "tasks.arithmetic", SKILL)):
            parts += _bar(middle + shift, top + height, height, results["models"][name][metric], color)
        parts += [centred(middle, top + height + 22, label, 14, INK, "font-weight='600'")]
        parts += [centred(middle, top + height + 40, note, 12, GREY)]
    seeds = len(results["seeds"])
    source = (
        f"The miniature (llama, LoRA), mean and 95 % interval over {seeds} seeds. Data: docs/results/demo_seeds.json"
    )
    parts.append(text(left, top + height + 68, source, 12, GREY))
    return svg(800, 360, "What the repair does on the miniature", parts)


def _key(x: float, y: float, entries: Iterable[tuple[str, str]]) -> list[str]:
    parts = []
    for color, words in entries:
        parts += [f"<rect x='{x:g}' y='{y:g}' width='14' height='14' fill='{color}'/>", text(x + 20, y + 12, words, 13)]
        x += 240
    return parts


def _bar(x: float, bottom: float, height: float, estimate: Mapping[str, float], color: str) -> list[str]:
    tall = height * estimate["mean"] / 100
    low, high = (bottom - height * min(max(estimate[end], 0), 100) / 100 for end in ("low", "high"))
    value = f"{estimate['mean']:.0f}" if estimate["mean"] >= 1 or estimate["mean"] == 0 else f"{estimate['mean']:.1f}"
    return [
        f"<rect x='{x:g}' y='{bottom - tall:.2f}' width='30' height='{tall:.2f}' fill='{color}'/>",
        f"<line x1='{x + 15:g}' y1='{low:.2f}' x2='{x + 15:g}' y2='{high:.2f}' stroke='{INK}' stroke-width='1.5'/>",
        centred(x + 15, min(bottom - tall, high) - 6, value, 12, INK),
    ]


def front() -> str:
    """Return harm against the new skill as Antidote's alpha grows, on one model."""
    tuning = json.loads((RESULTS / "paper_table_tuning.json").read_text(encoding="utf-8"))
    tried: list[dict[str, Any]] = tuning["antidote"]["tried"]
    left, top, width, height = 76, 40, 420, 300
    points = [
        (left + width * row["tasks.arithmetic"] / 100, top + height - height * row["harmful_score"] / 100)
        for row in tried
    ]
    parts = _axis(left, top, width, height, "harmful score, percent (less is better)")
    for percent in (0, 25, 50, 75, 100):
        parts.append(centred(left + width * percent / 100, top + height + 20, str(percent), 12, GREY))
    parts.append(centred(left + width / 2, top + height + 42, "new skill kept, percent (more is better)", 13, GREY))
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    parts.append(f"<polyline points='{line}' fill='none' stroke='{BLUE}' stroke-width='2'/>")
    for row, (x, y) in zip(tried, points, strict=True):
        parts.append(f"<circle cx='{x:.2f}' cy='{y:.2f}' r='5' fill='{BLUE}'/>")
        # Above the point, but for the steep part of the curve, where the label would cross the line.
        steep = 5 < row["harmful_score"] < 90
        shift = (-12, 4, "text-anchor='end'") if steep else (-8, -12, "text-anchor='middle'")
        parts.append(text(x + shift[0], y + shift[1], f"alpha {row['value']:g}", 12, INK, shift[2]))
    parts += [
        f"<rect x='{left + width - 14}' y='{top + height - 14}' width='14' height='14' fill='{SKILL}'/>",
        text(left + width - 20, top + height - 24, "wanted", 12, SKILL, "text-anchor='middle'"),
        text(
            left, top + height + 72, "One attacked miniature (llama, LoRA, seed 100, a fifth harmful rows).", 12, GREY
        ),
        text(left, top + height + 90, "Data: docs/results/paper_table_tuning.json", 12, GREY),
    ]
    return svg(540, 450, "Harm against the new skill, by alpha", parts)


FIGURES: Mapping[str, Callable[[], str]] = {
    "stages.svg": stages,
    "rooms.svg": rooms,
    "outcome.svg": outcome,
    "front.svg": front,
}


def main() -> None:
    """Write every figure."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
