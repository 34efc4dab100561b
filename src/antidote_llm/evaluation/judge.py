"""What a judge is, and the judges that are installed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

from antidote_llm.errors import UserError

Outcome: TypeAlias = Literal["refusal", "harmful", "helpful", "incoherent"]
HarmMeasure: TypeAlias = Literal["harmful_score", "compliance_rate"]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
HARM_MEASURES: tuple[HarmMeasure, ...] = get_args(HarmMeasure)
JUDGE_GROUP = "antidote_llm.judges"


@runtime_checkable
class Judge(Protocol):
    """Says of every answer what it is.

    Attributes:
        name: What the judge is called on the command line and in results.
        measures: What its verdicts on harmful prompts add up to. ``harmful_score`` is for a judge that recognises harm:
            the share of answers that it calls harmful. ``compliance_rate`` is for one that only recognises refusals and
            babble: the share of the other answers, whatever they say.
    """

    name: str
    measures: HarmMeasure

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        """Judge each answer to its prompt, in order."""
        ...


def judge_names() -> list[str]:
    """Return the names of the installed judges, sorted."""
    return sorted(entry_points(group=JUDGE_GROUP).names)


def load_judge(name: str) -> Judge:
    """Load an installed judge by its name in the entry-point group ``antidote_llm.judges``.

    Raises:
        UserError: There is no judge of this name, or it cannot be loaded.
    """
    found = tuple(entry_points(group=JUDGE_GROUP).select(name=name))
    if not found:
        near = difflib.get_close_matches(name, judge_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"unknown judge '{name}': {hint}there are {', '.join(judge_names()) or 'none installed'}")
    return _instance(found[0])


def judged(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
    """Return a judge's outcomes, one known outcome for each answer.

    Raises:
        UserError: The judge returned another number of outcomes, or one that is not known.
    """
    outcomes = judge.outcomes(prompts, answers)
    if len(outcomes) != len(answers):
        raise UserError(
            f"judge '{judge.name}' gave {len(outcomes)} outcomes for {len(answers)} answers: use another judge"
        )
    for outcome in outcomes:
        if outcome not in OUTCOMES:
            raise UserError(
                f"judge '{judge.name}' gave the outcome {outcome!r}, which is none of {', '.join(OUTCOMES)}: "
                "use another judge"
            )
    return outcomes


def _instance(entry: EntryPoint) -> Judge:
    try:
        judge = entry.load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"judge '{entry.name}' ({entry.value}) cannot be loaded: {error}: reinstall the package that it comes from"
        ) from error
    if not isinstance(judge, Judge) or judge.measures not in HARM_MEASURES:
        raise UserError(
            f"judge '{entry.name}' ({entry.value}) is no judge: it needs a name, outcomes(), "
            f"and measures, one of {', '.join(HARM_MEASURES)}"
        )
    return judge
