"""The section of a model card on a repair: what was done, with which counts, and how it was measured."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.io.visible_text import visible
from antidote_llm.report import formatting as numbers
from antidote_llm.report.data import ModelOutcome, ReportData
from antidote_llm.report.formatting import WORDS, in_order, measure
from antidote_llm.report.network import network
from antidote_llm.report.outcomes import counted_as_worst, outside, roles

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$!&])")
_MAX_FILES = 8
_BACKTICKS = re.compile(r"`+")


def model_card_section(data: ReportData) -> str:
    """Return a Markdown section for the README.md of a repaired model.

    It ships with the model and therefore contains no prompt, no answer and no absolute path.
    """
    parts = ["## Safety repair", _plain(data.verdict)]
    if data.recipe:
        parts.append(_done(data))
    parts.append(_outcomes(data))
    if data.notes:
        parts.append("\n".join(f"- {_plain(note)}" for note in data.notes))
    if data.recipe and data.recipe.inputs:
        parts.append(_inputs(data))
    if data.revert_command:
        parts.append("Whoever holds the record of this repair can undo it, bit for bit, with `antidote patch revert`.")
    return "\n\n".join(parts) + "\n"


def _done(data: ReportData) -> str:
    assert data.recipe is not None
    words = WORDS[data.target]
    settings = ", ".join(f"{_code(f'{name}={numbers.setting(value)}')}" for name, value in data.recipe.settings.items())
    sentence = f"This model was repaired with Antidote, method {_code(data.recipe.method)}"
    sentence += f" ({settings})." if settings else "."
    if data.sites:
        total = network(data.sites).total
        sentence += (
            f" {numbers.count(total.changed)} of {numbers.count(total.entries)} entries ({total.share_text} %)"
            f" in {words.count(total.sites)} were changed."
        )
        if total.kept is not None:
            sentence += f" {words.norm_left(total.kept_text)}"
        sentence += f" {words.edited}"
    beyond = outside(data.outside, data.sites)
    return f"{sentence} {_plain(beyond.sentence)}" if beyond else sentence


def _outcomes(data: ReportData) -> str:
    if not any(model.metrics or model.tasks for model in data.outcomes):
        return "Nothing was evaluated."
    named = roles(data.outcomes)
    sides = [model for model in data.outcomes if named[model.name] != "other"]
    models = sides if len(sides) == 2 else list(data.outcomes)
    rows = [
        *(
            (f"{measure(key).of}: {measure(key).label.lower()}", [model.metrics.get(key) for model in models])
            for key in in_order((key for model in models for key in model.metrics), data.measures)
        ),
        *((f"User's task: {name}", [model.tasks.get(name) for model in models]) for name in _tasks(models)),
        *((f"Gain kept: {name}", [model.gain_kept.get(name) for model in models]) for name in _gains(models)),
    ]
    lines = [
        "Percent, with 95 % intervals; every model answered the same prompts.",
        "",
        "| | " + " | ".join(_plain(model.label) for model in models) + " | n |",
        "|---|" + "---:|" * (len(models) + 1),
    ]
    for label, estimates in rows:
        counts = sorted({estimate.n for estimate in estimates if estimate})
        cells = [*(_cell(estimate) for estimate in estimates), " / ".join(map(numbers.count, counts))]
        lines.append(f"| {_plain(label)} | " + " | ".join(cells) + " |")
    if sentences := counted_as_worst(data):
        lines += ["", *(f"- {_plain(sentence)}" for sentence in sentences)]
    return "\n".join(lines)


def _inputs(data: ReportData) -> str:
    assert data.recipe is not None
    lines = []
    for name, source in data.recipe.inputs.items():
        digest = f", sha256 {_code(source.sha256)}" if source.sha256 else ""
        lines.append(f"- {_plain(name)}: {_code(_public(source.reference))}{digest}")
        if len(source.files) <= _MAX_FILES:
            lines += [f"  - {_code(file)}: sha256 {_code(sha256)}" for file, sha256 in source.files.items()]
        else:
            lines.append(f"  - {numbers.count(len(source.files))} files; the record holds the sha256 of each")
    return "Made from:\n\n" + "\n".join(lines)


def _public(reference: str) -> str:
    """Return a reference; of an absolute path or one outside the working folder, only the last name."""
    absolute = PurePosixPath(reference).is_absolute() or PureWindowsPath(reference).is_absolute()
    return (
        re.split(r"[/\\]", reference.rstrip("/\\"))[-1] if absolute or reference.startswith(("~", "..")) else reference
    )


def _tasks(models: list[ModelOutcome]) -> list[str]:
    return list(dict.fromkeys(name for model in models for name in model.tasks))


def _gains(models: list[ModelOutcome]) -> list[str]:
    return list(dict.fromkeys(name for model in models for name, gain in model.gain_kept.items() if gain))


def _cell(estimate: Estimate | None) -> str:
    return f"{numbers.decimal(estimate.value)} ({numbers.interval(estimate)})" if estimate else "\N{EM DASH}"


def _plain(text: str) -> str:
    """Return text on one line with Markdown characters escaped."""
    return _MARKDOWN.sub(r"\\\1", " ".join(visible(text).split()))


def _code(text: str) -> str:
    """Return a code span that no backtick in the text can close."""
    flat = " ".join(visible(text).split())
    fence = "`" * (1 + max((len(run) for run in _BACKTICKS.findall(flat)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{flat}{pad}{fence}"
