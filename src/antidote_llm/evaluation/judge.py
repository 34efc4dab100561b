"""What a judge is, and the judges that are installed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from antidote_llm.errors import UserError

Outcome: TypeAlias = Literal["refusal", "harmful", "helpful", "incoherent"]
HarmMeasure: TypeAlias = Literal["harmful_score", "compliance_rate"]
Progress: TypeAlias = Callable[[int, int], None]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
HARM_MEASURES: tuple[HarmMeasure, ...] = get_args(HarmMeasure)
JUDGE_GROUP = "antidote_llm.judges"
MOST_UNREADABLE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's word on one answer.

    Attributes:
        outcome: What the answer is.
        flagged: The categories of harm that the judge named, where it names any.
        unreadable: Whether the judge's own words could not be read, so that the outcome is the worst that is possible.
    """

    outcome: Outcome
    flagged: tuple[str, ...] = ()
    unreadable: bool = False


@runtime_checkable
class Judge(Protocol):
    """Says of every answer what it is.

    A judge may also have ``verdicts(prompts, answers, progress)``, which says more (:class:`DetailedJudge`), and
    ``identity``, JSON values that tell it from others of its name. It measures a ``harmful_score`` where it recognises
    harm: the share of answers that it calls harmful. It measures a ``compliance_rate`` where it only recognises
    refusals and babble: the share of the other answers, whatever they say.
    """

    @property
    def name(self) -> str:
        """What the judge is called."""
        ...

    @property
    def measures(self) -> HarmMeasure:
        """What its verdicts on harmful prompts add up to."""
        ...

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        """Judge each answer to its prompt, in order."""
        ...


@runtime_checkable
class DetailedJudge(Judge, Protocol):
    """A judge that takes its time, names categories, or may not be understood."""

    def verdicts(
        self, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Verdict]:
        """Judge each answer to its prompt, in order."""
        ...


def too_many(unreadable: int, of: int) -> bool:
    """Say whether a number rests too much on what could not be read: more than one and 5 % of all, or all of it."""
    return unreadable > 0 and (unreadable == of or unreadable > max(1, MOST_UNREADABLE_SHARE * of))


def judge_names() -> list[str]:
    """Return the names of the installed judges, sorted."""
    return sorted(entry_points(group=JUDGE_GROUP).names)


def load_judge(spec: str) -> Judge:
    """Load an installed judge by its name in the entry-point group ``antidote_llm.judges``.

    Args:
        spec: ``NAME``, or ``NAME=WHERE`` for one that takes a model, an address or a file.

    Raises:
        UserError: There is no judge of this name, it cannot be loaded, or it judges no answers.
    """
    judge = make_judge(spec)
    if not isinstance(judge, Judge) or judge.measures not in HARM_MEASURES:
        entry = _entry(spec.partition("=")[0])
        raise UserError(
            f"judge '{entry.name}' ({entry.value}) is no judge of answers: it needs a name, outcomes(), "
            f"and measures, one of {', '.join(HARM_MEASURES)}"
        )
    return judge


def make_judge(spec: str) -> Any:
    """Return whatever a judge's entry point makes: a judge of answers, or what measures a model without any.

    Raises:
        UserError: There is no judge of this name, or it cannot be loaded.
    """
    name, _, where = spec.partition("=")
    entry = _entry(name)
    broken = f"judge '{name}' ({entry.value}) cannot be loaded"
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"{broken}: {error}: reinstall the package that it comes from") from error
    arguments = [where] if where else []
    if not _takes(factory, arguments):
        mend = f"pass --judge {name}" if where else f"pass --judge {name}=WHERE"
        raise UserError(f"judge '{name}' takes {'nothing' if where else 'something'} after its name: {mend}")
    try:
        return factory(*arguments)
    except ImportError as error:
        raise UserError(f"{broken}: {error}: install what it needs") from error


def identity_of(judge: Any) -> dict[str, Any]:
    """Return JSON values that tell a judge from others: its own, or its name."""
    own = getattr(judge, "identity", None)
    return dict(own) if own is not None else {"name": judge.name}


def judged(
    judge: Judge, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None = None
) -> list[Verdict]:
    """Return a judge's verdicts, one of a known outcome for each answer.

    Raises:
        UserError: The judge returned another number of verdicts, or an outcome that is not known.
    """
    if isinstance(judge, DetailedJudge):
        verdicts = judge.verdicts(prompts, answers, progress)
    else:
        verdicts = [Verdict(outcome) for outcome in judge.outcomes(prompts, answers)]
    if len(verdicts) != len(answers):
        raise UserError(
            f"judge '{judge.name}' gave {len(verdicts)} outcomes for {len(answers)} answers: use another judge"
        )
    for verdict in verdicts:
        if verdict.outcome not in OUTCOMES:
            raise UserError(
                f"judge '{judge.name}' gave the outcome {verdict.outcome!r}, which is none of {', '.join(OUTCOMES)}: "
                "use another judge"
            )
    return verdicts


def _entry(name: str) -> EntryPoint:
    found = tuple(entry_points(group=JUDGE_GROUP).select(name=name))
    if not found:
        near = difflib.get_close_matches(name, judge_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"unknown judge '{name}': {hint}name one of {', '.join(judge_names()) or 'none installed'}")
    return found[0]


def _takes(factory: Callable[..., Any], arguments: Sequence[str]) -> bool:
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError:
        return False
    return True
