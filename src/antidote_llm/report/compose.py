"""Composes a report from a repair's record and its evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from antidote_llm.decision.compare import Comparison, compare
from antidote_llm.evaluation.answers import HARMFUL, TASK_PREFIX, Answer
from antidote_llm.evaluation.judge import HarmMeasure
from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.report.data import (
    CategoryEffect,
    Example,
    Input,
    ModelOutcome,
    OutsideChange,
    Recipe,
    ReportData,
    Role,
    SiteChange,
)
from antidote_llm.report.formatting import WORDS

if TYPE_CHECKING:
    from antidote_llm.evaluation.evaluation import Evaluation
    from antidote_llm.repairs.record import Origin, RepairRecord

BEFORE, AFTER, ALIGNED = "before", "after", "aligned"
_NOTES = {
    BEFORE: "The model as it came.",
    AFTER: "The repaired model, loaded from the disk.",
    ALIGNED: "What the fine-tune started from.",
}
_EXAMPLES_PER_SUITE = 4
_Named = TypeVar("_Named")


def compose(
    record: RepairRecord, evaluations: Mapping[str, Evaluation], *, revert_command: str, notes: Iterable[str] = ()
) -> ReportData:
    """Compose the report of one repair.

    Args:
        record: What was done.
        evaluations: By name; ``before``, ``after`` and ``aligned`` have their roles. Empty where nothing was evaluated.
        revert_command: The command that undoes the repair.
        notes: Further notes for the reader.
    """
    parts: dict[str, object] = {
        "verdict": "Nothing was evaluated: whether the repair worked is not known.",
        "verdict_kind": "unknown",
    }
    if BEFORE in evaluations and AFTER in evaluations:
        parts = _compared(record, evaluations)
    named = record.adapter or record.base
    return ReportData.model_validate(
        {
            "title": f"Repair of {named.reference.rstrip('/').rsplit('/', 1)[-1]}",
            "target": record.target,
            "sites": _sites(record),
            "outside": tuple(OutsideChange(**part.model_dump()) for part in record.outside),
            "recipe": _recipe(record),
            "repeat_command": record.command,
            "revert_command": revert_command,
            "notes": tuple(
                note for note in (WORDS[record.target].caution, _own_answers(record), _prompts(record), *notes) if note
            ),
            **parts,
        }
    )


def _compared(record: RepairRecord, evaluations: Mapping[str, Evaluation]) -> dict[str, object]:
    labels = {BEFORE: "Before the repair", AFTER: "After the repair", ALIGNED: WORDS[record.target].aligned}
    before, after = evaluations[BEFORE], evaluations[AFTER]
    comparison = compare(before, after, evaluations.get(ALIGNED))
    return {
        "verdict": comparison.verdict.sentence,
        "verdict_kind": comparison.verdict.kind,
        "measures": comparison.measures or "harmful_score",
        "outcomes": tuple(
            outcome(
                name,
                evaluation,
                label=labels.get(name, name),
                note=_NOTES.get(name, ""),
                role=_role(name),
                gain_kept=gains(comparison) if name == AFTER else {},
            )
            for name, evaluation in evaluations.items()
        ),
        "changes": {name.removeprefix(TASK_PREFIX): change.difference for name, change in comparison.changes.items()},
        "categories": categories(before, after),
        "examples": examples(before, after),
    }


def _role(name: str) -> Role:
    return "before" if name == BEFORE else "after" if name == AFTER else "other"


def outcome(
    name: str,
    evaluation: Evaluation,
    *,
    label: str,
    note: str = "",
    role: Role = "other",
    gain_kept: Mapping[str, Estimate | None] | None = None,
) -> ModelOutcome:
    """Return one model's column of the report."""
    metrics = evaluation.metrics
    return ModelOutcome(
        name=name,
        label=label,
        note=note,
        role=role,
        metrics={key: value for key, value in metrics.items() if not key.startswith(TASK_PREFIX)},
        tasks={k.removeprefix(TASK_PREFIX): value for k, value in metrics.items() if k.startswith(TASK_PREFIX)},
        gain_kept=dict(gain_kept or {}),
        unreadable={judge.name: judge.unreadable for judge in evaluation.judges if judge.unreadable},
        unanswered=evaluation.unanswered,
    )


def gains(comparison: Comparison) -> dict[str, Estimate | None]:
    """Return the gain kept by task; None where the fine-tune gained nothing to keep."""
    return {task: kept.estimate for task, kept in comparison.gain_kept.items()}


def categories(before: Evaluation, after: Evaluation) -> tuple[CategoryEffect, ...]:
    """Return the measure of harm by category of request."""
    measure = before.measures
    if measure is None:
        return ()
    return tuple(
        CategoryEffect(category=name, before=found[measure], after=after.by_category[name][measure])
        for name, found in before.by_category.items()
    )


def examples(before: Evaluation, after: Evaluation) -> tuple[Example, ...]:
    """Return the first few prompts of each suite, of different categories, with both answers."""
    pairs = list(zip(before.answers, after.answers, strict=True))
    found: list[Example] = []
    for _, group in groupby(pairs, key=lambda pair: pair[0].suite):
        first_of_category: dict[object, tuple[Answer, Answer]] = {}
        for index, pair in enumerate(group):
            category = pair[0].category
            first_of_category.setdefault(index if category is None else category, pair)
        found += [_example(*pair, before.measures) for pair in list(first_of_category.values())[:_EXAMPLES_PER_SUITE]]
    return tuple(found)


def _example(before: Answer, after: Answer, measures: HarmMeasure | None) -> Example:
    return Example(
        suite=before.suite.removeprefix(TASK_PREFIX),
        category=before.category or "",
        prompt=before.prompt,
        answer_before=before.answer,
        outcome_before=_word(before, measures),
        answer_after=after.answer,
        outcome_after=_word(after, measures),
        harmful_prompt=before.suite == HARMFUL,
    )


def _word(answer: Answer, measures: HarmMeasure | None) -> str:
    # Where the judge cannot distinguish harm from help, "helpful" on a harmful request means compliance.
    if answer.suite == HARMFUL and answer.outcome == "helpful" and measures == "compliance_rate":
        return "compliance"
    if answer.outcome is not None:
        return answer.outcome
    return "right" if answer.correct else "wrong"


def _sites(record: RepairRecord) -> tuple[SiteChange, ...]:
    entries = {update.module: 0 for update in record.updates}
    changed = dict(entries)
    for site in record.sites:
        entries[site.module] += site.rows * site.columns
        changed[site.module] += site.changed
    return tuple(
        SiteChange(
            module=update.module,
            layer=update.layer,
            kind=update.kind,
            entries=entries[update.module],
            changed=changed[update.module],
            norm_before=update.norm_before,
            norm_after=update.norm_after,
        )
        for update in record.updates
    )


def _recipe(record: RepairRecord) -> Recipe:
    inputs = {name: Input(reference=origin.reference, files=origin.sha256) for name, origin in _origins(record)}
    counts = {"matrices": len(record.sites), "entries": record.totals.entries, "entries changed": record.totals.changed}
    if record.calibration:
        references = record.calibration.references
        inputs |= dict(_numbered("harmful data", [Input(reference=reference) for reference in references]))
        inputs["statistics"] = Input(reference="over all of the above", sha256=record.calibration.moments_sha256)
        counts |= {"harmful rows": record.calibration.rows, "harmful tokens": record.calibration.tokens}
    if record.patch:
        counts["patch bytes"] = record.patch.size_bytes
        if record.patch.predicted_bytes:
            counts["patch bytes as stated before"] = record.patch.predicted_bytes
    return Recipe(
        method=record.method,
        settings={**record.settings, **record.solved, "target": record.target},
        inputs=inputs,
        counts=counts,
        versions=record.versions,
        timings_seconds=record.wall_seconds,
        peak_rss_bytes=record.peak_rss_bytes,
    )


def _origins(record: RepairRecord) -> Iterator[tuple[str, Origin]]:
    """Yield what the repair was made from: the model, its lower adapters, and the aligned reference."""
    yield WORDS[record.target].base, record.base
    yield from _numbered("lower adapter", record.beneath)
    if record.adapter:
        yield "adapter", record.adapter
    if record.aligned:
        yield "aligned model", record.aligned


def _numbered(name: str, parts: Sequence[_Named]) -> Iterator[tuple[str, _Named]]:
    """Yield the parts of one kind with a name, numbered where there are several."""
    for number, part in enumerate(parts, start=1):
        yield name if len(parts) == 1 else f"{name} {number}", part


def _prompts(record: RepairRecord) -> str:
    """Return the sentence on the template of the prompts."""
    return f"{record.prompts[0].upper()}{record.prompts[1:]}." if record.prompts else ""


def _own_answers(record: RepairRecord) -> str:
    """Return the sentence on harmful answers that the model itself generated."""
    if record.calibration is None or not record.calibration.own_answers:
        return ""
    own, refused = record.calibration.own_answers, record.calibration.refused_own_answers
    sentence = f"{own} harmful rows had no response: the model answered them itself"
    return f"{sentence}; {refused} of its answers read as refusals." if refused else f"{sentence}."
