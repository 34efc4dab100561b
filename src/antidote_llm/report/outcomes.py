"""What the page shows of outcomes, categories, examples and updates outside the edited matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.report import formatting as numbers
from antidote_llm.report.data import CategoryEffect, Example, ModelOutcome, OutsideChange, ReportData, Role, SiteChange
from antidote_llm.report.formatting import (
    PERCENT,
    Measure,
    Scale,
    around,
    clip,
    clip_name,
    gain_measure,
    in_order,
    measure,
    task_measure,
)

MAX_EXAMPLES = 30
_MAX_PROMPT = 1000
_MAX_ANSWER = 2000
# The rest of a longer answer is folded, where it is long enough.
_UNFOLDED = 600
_WORTH_FOLDING = 200
# A judge may call an answer a refusal that complies later: the opening is enough to show the refusal.
_OPENING = 160
_NEVER_SHOWN = ("harmful", "compliance")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it is shown: its text, or None where it is withheld; lengths in characters."""

    outcome: str
    length: int
    text: str | None
    left_out: int
    folded: str = ""


@dataclass(frozen=True, slots=True)
class ShownExample:
    """One example as it is shown."""

    suite: str
    category: str
    prompt: str
    prompt_left_out: int
    before: Answer
    after: Answer


def shown(examples: Sequence[Example], show_answers: bool) -> list[ShownExample]:
    """Return the first examples; without ``show_answers``, texts that may be harmful are withheld."""
    found = []
    for example in examples[:MAX_EXAMPLES]:
        prompt, left_out = clip(example.prompt, _MAX_PROMPT)
        before = _answer(example.answer_before, example.outcome_before, example.harmful_prompt, show_answers)
        after = _answer(example.answer_after, example.outcome_after, example.harmful_prompt, show_answers)
        found.append(
            ShownExample(clip_name(example.suite), clip_name(example.category), prompt, left_out, before, after)
        )
    return found


def _answer(text: str, outcome: str, harmful_prompt: bool, show_answers: bool) -> Answer:
    if show_answers:
        limit = _MAX_ANSWER
    elif outcome == "refusal":
        limit = _OPENING
    elif harmful_prompt or outcome in _NEVER_SHOWN:
        return Answer(outcome, len(text), None, len(text))
    else:
        limit = _MAX_ANSWER
    kept, left_out = clip(text, limit)
    if len(kept) < _UNFOLDED + _WORTH_FOLDING:
        return Answer(outcome, len(text), kept, left_out)
    return Answer(outcome, len(text), kept[:_UNFOLDED], left_out, kept[_UNFOLDED:])


_MAX_CATEGORIES = 40


def worst_first(categories: Sequence[CategoryEffect]) -> list[CategoryEffect]:
    """Return the worst categories first: by harm after the repair, then before it, then by name."""
    ordered = sorted(categories, key=lambda effect: (-effect.after.value, -effect.before.value, effect.category))
    return ordered[:_MAX_CATEGORIES]


_MAX_ROWS = 40


@dataclass(frozen=True, slots=True)
class OutsideRow:
    """Tensors of one name; shares of the whole update's squared norm, in percent."""

    name: str
    tensors: int
    norm_before: float
    norm_after: float
    share_before: str
    share_after: str


@dataclass(frozen=True, slots=True)
class Outside:
    """Updates outside the edited matrices, the largest first; ``total`` includes those that ``rows`` leave out."""

    rows: tuple[OutsideRow, ...]
    total: OutsideRow
    left_out: int
    sentence: str


def outside(changes: Sequence[OutsideChange], sites: Iterable[SiteChange]) -> Outside | None:
    """Return the update outside the edited matrices; None where it is unknown."""
    if not changes:
        return None
    edited = list(sites)
    before, after = _norm_before(changes), _norm_after(changes)
    whole_before = math.hypot(before, *(site.norm_before for site in edited))
    whole_after = math.hypot(after, *(site.norm_after for site in edited))

    def row(name: str, tensors: int, norm_before: float, norm_after: float) -> OutsideRow:
        shares = numbers.share(norm_before**2, whole_before**2), numbers.share(norm_after**2, whole_after**2)
        return OutsideRow(name, tensors, norm_before, norm_after, *shares)

    total = row("all", sum(change.tensors for change in changes), before, after)
    largest = sorted(changes, key=lambda change: (-change.norm_before, change.name))[:_MAX_ROWS]
    return Outside(
        rows=tuple(row(clip_name(c.name), c.tensors, c.norm_before, c.norm_after) for c in largest),
        total=total,
        left_out=len(changes) - len(largest),
        sentence=_sentence(changes, total),
    )


def _sentence(changes: Sequence[OutsideChange], total: OutsideRow) -> str:
    many = _tensors(total.tensors)
    moved = [change for change in changes if change.norm_before or change.norm_after]
    if not moved:
        return f"The fine-tune left {many} outside the edited matrices as they were."
    held = (
        f"Of the squared norm of the whole update, {total.share_before} % lay outside the edited matrices, in {many}: "
        "embeddings, norms, biases, head."
    )
    put_back = sum(change.tensors for change in moved if change.norm_after == 0)
    untouched = sum(change.tensors for change in moved if change.norm_after == change.norm_before)
    changed = [
        (put_back, "put {} back to what they were before the fine-tune"),
        (untouched, "did not touch {}"),
        (sum(change.tensors for change in moved) - put_back - untouched, "changed {}"),
    ]
    parts = [(count, words) for count, words in changed if count]
    if len(parts) == 1:
        return f"{held} The repair {parts[0][1].format('them')}."
    return f"{held} The repair " + ", and ".join(words.format(_tensors(count)) for count, words in parts) + "."


def _tensors(count: int) -> str:
    return f"{numbers.count(count)} {'tensor' if count == 1 else 'tensors'}"


def _norm_before(changes: Iterable[OutsideChange]) -> float:
    return math.hypot(*(change.norm_before for change in changes))


def _norm_after(changes: Iterable[OutsideChange]) -> float:
    return math.hypot(*(change.norm_after for change in changes))


# A narrower segment has no room for its number.
_LABELLED_PERCENT = 9.0
_WHOLE_TOLERANCE_PERCENT = 1.0
_ANSWERS = {
    "harmful_score": "harmful",
    "compliance_rate": "complies",
    "helpful_rate": "harmless help",
    "incoherent_rate": "incoherent",
    "refusal_rate": "refuses",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One model in a panel; ``missing`` is the reason why it has no estimate."""

    outcome: ModelOutcome
    role: Role
    estimate: Estimate | None
    missing: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One measure of every model on one scale; ``n`` is None where it differs between models."""

    measure: Measure
    rows: tuple[Row, ...]
    scale: Scale
    n: int | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar, in percent; ``text`` is empty where it does not fit."""

    key: str
    label: str
    start: float
    width: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """The outcomes of one model's answers to harmful requests, which add up to 100 %."""

    outcome: ModelOutcome
    role: Role
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """A measure before and after, for the page's head; ``change`` is the paired difference in points."""

    measure: Measure
    before: Estimate
    after: Estimate
    change: Estimate | None


def roles(outcomes: Sequence[ModelOutcome]) -> dict[str, Role]:
    """Return each model's role; of two models without a role, the first is before and the second after."""
    if len(outcomes) == 2 and all(outcome.role == "other" for outcome in outcomes):
        return {outcomes[0].name: "before", outcomes[1].name: "after"}
    return {outcome.name: outcome.role for outcome in outcomes}


def panels(data: ReportData) -> list[Panel]:
    """Return the panels: metrics, then tasks, then the gain kept on each task that gained."""
    models = data.outcomes
    metrics = in_order((key for model in models for key in model.metrics), data.measures)
    tasks = _names(model.tasks for model in models)
    without = set(tasks_without_gain(data))
    gains = [name for name in _names(model.gain_kept for model in models) if name not in without]
    return [
        *(_panel(models, measure(key), [model.metrics.get(key) for model in models]) for key in metrics),
        *(_panel(models, task_measure(name), [model.tasks.get(name) for model in models]) for name in tasks),
        *(_gain_panel(models, name) for name in gains),
    ]


def tasks_without_gain(data: ReportData) -> list[str]:
    """Return the tasks on which the fine-tune gained nothing, so that no model has a gain kept."""
    gained = {name for model in data.outcomes for name, estimate in model.gain_kept.items() if estimate}
    return [name for name in _names(model.gain_kept for model in data.outcomes) if name not in gained]


def counted_as_worst(data: ReportData) -> list[str]:
    """Return a sentence for each model on its unreadable verdicts and unanswered prompts, which its numbers include."""
    found = []
    for model in data.outcomes:
        for judge, number in model.unreadable.items():
            verdicts = "verdict" if number == 1 else "verdicts"
            found.append(
                f"{model.label}: {numbers.count(number)} {verdicts} of the judge {judge} could not be read: counted as "
                "harmful, unless a refusal or incoherent."
            )
        if model.unanswered:
            prompts = "prompt" if model.unanswered == 1 else "prompts"
            found.append(
                f"{model.label}: {numbers.count(model.unanswered)} {prompts} without a usable answer: counted as "
                "harmful, over-refused or wrong."
            )
    return found


def bars(data: ReportData) -> list[Bar]:
    """Return a bar for each model; none where the shares do not add up to 100 %."""
    named = roles(data.outcomes)
    keys = (data.measures, "helpful_rate", "incoherent_rate", "refusal_rate")
    models = [model for model in data.outcomes if data.measures in model.metrics]
    shares = [{key: model.metrics[key].value for key in keys if key in model.metrics} for model in models]
    if any(abs(sum(parts.values()) - 100) > _WHOLE_TOLERANCE_PERCENT for parts in shares):
        return []
    return [Bar(model, named[model.name], _segments(parts)) for model, parts in zip(models, shares, strict=True)]


def legend(found: Sequence[Bar]) -> list[tuple[str, str]]:
    """Return the key and label of each kind of segment in the bars."""
    segments = {segment.key for bar in found for segment in bar.segments}
    return [(key, label) for key, label in _ANSWERS.items() if key in segments]


def key_numbers(data: ReportData) -> list[KeyNumber]:
    """Return the numbers for the page's head; none where before and after are unknown."""
    named = roles(data.outcomes)
    by_role = {named[model.name]: model for model in data.outcomes}
    if "before" not in by_role or "after" not in by_role:
        return []
    before, after = by_role["before"], by_role["after"]
    shown = [measure(key) for key in (data.measures, "incoherent_rate", "over_refusal_rate")]
    found = [
        KeyNumber(item, before.metrics[item.key], after.metrics[item.key], data.changes.get(item.key))
        for item in shown
        if item.key in before.metrics and item.key in after.metrics
    ]
    return found + [
        KeyNumber(
            replace(task_measure(name), label=f"{name}, accuracy"),
            before.tasks[name],
            after.tasks[name],
            data.changes.get(name),
        )
        for name in before.tasks
        if name in after.tasks
    ]


def _panel(models: Sequence[ModelOutcome], of: Measure, estimates: Sequence[Estimate | None]) -> Panel:
    named = roles(models)
    rows = [
        Row(model, named[model.name], estimate, "" if estimate else "not measured")
        for model, estimate in zip(models, estimates, strict=True)
    ]
    return Panel(of, tuple(rows), PERCENT, _common_n(estimates))


def _gain_panel(models: Sequence[ModelOutcome], name: str) -> Panel:
    named = roles(models)
    # The two models that define the gain have no gain kept.
    judged = [model for model in models if name in model.gain_kept]
    estimates = [model.gain_kept[name] for model in judged]
    rows = [
        Row(model, named[model.name], estimate, "" if estimate else "no gain to keep")
        for model, estimate in zip(judged, estimates, strict=True)
    ]
    ends = [end for estimate in estimates if estimate for end in (estimate.low, estimate.high)]
    return Panel(gain_measure(name), tuple(rows), around(ends, floor=-100, ceiling=200), _common_n(estimates))


def _segments(shares: Mapping[str, float]) -> tuple[Segment, ...]:
    whole = sum(shares.values())
    found, start = [], 0.0
    for key, value in shares.items():
        width = 100 * value / whole
        text = f"{value:.0f}" if width >= _LABELLED_PERCENT else ""
        if width > 0:
            found.append(Segment(key, _ANSWERS[key], round(start, 2), round(width, 2), text))
        start += width
    return tuple(found)


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _common_n(estimates: Iterable[Estimate | None]) -> int | None:
    counts = {estimate.n for estimate in estimates if estimate}
    return counts.pop() if len(counts) == 1 else None
