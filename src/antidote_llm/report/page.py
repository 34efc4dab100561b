"""The report: one self-contained HTML file that loads nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from antidote_llm.io.files import write_text
from antidote_llm.io.visible_text import visible
from antidote_llm.report import formatting as numbers
from antidote_llm.report.data import ReportData
from antidote_llm.report.formatting import PERCENT, WORDS, clip_name, measure
from antidote_llm.report.network import STEPS, network
from antidote_llm.report.outcomes import (
    bars,
    counted_as_worst,
    key_numbers,
    legend,
    outside,
    panels,
    roles,
    shown,
    tasks_without_gain,
    worst_first,
)

_VERDICT_WORDS = {"good": "Good", "mixed": "Mixed", "bad": "Bad", "unknown": "Not evaluated"}


def render(data: ReportData, *, show_answers: bool = False) -> str:
    """Return the report as HTML; the same data gives the same text.

    Args:
        data: What to show; empty parts are left out.
        show_answers: Whether the models' answers are shown. Otherwise answers to harmful prompts are left out of the
            text, except for the opening of a refusal.
    """
    style = _style()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            style=Markup(style),
            style_sha256=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            verdict_word=_VERDICT_WORDS[data.verdict_kind],
            primary=measure(data.measures),
            key_numbers=key_numbers(data),
            roles=roles(data.outcomes),
            counted_as_worst=counted_as_worst(data),
            bars=bars(data),
            legend=legend(bars(data)),
            panels=panels(data),
            tasks_without_gain=tasks_without_gain(data),
            words=WORDS[data.target],
            network=network(data.sites) if data.sites else None,
            outside=outside(data.outside, data.sites),
            steps=STEPS,
            categories=worst_first(data.categories),
            percent=PERCENT,
            examples=shown(data.examples, show_answers),
            show_answers=show_answers,
        )
    )


def write(path: Path, data: ReportData, *, show_answers: bool = False) -> None:
    """Render the report and write it atomically; see ``render``."""
    write_text(path, render(data, show_answers=show_answers))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("antidote_llm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "decimal": numbers.decimal,
        "signed": numbers.signed,
        "interval": numbers.interval,
        "signed_interval": numbers.signed_interval,
        "share": numbers.share,
        "count": numbers.count,
        "norm": numbers.norm,
        "duration": numbers.duration,
        "size": numbers.size,
        "setting": numbers.setting,
        "breakable": _breakable,
        "name": clip_name,
    }
    return environment


def _finalize(value: object) -> object:
    """Show the invisible characters of every text that a template inserts."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """Let a dotted name break after its dots and underscores."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", visible(name)))


@cache
def _style() -> str:
    text = resources.files("antidote_llm.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    # The page's policy allows this style sheet by its hash; browsers normalise line ends before hashing.
    return text.replace("\r\n", "\n")
