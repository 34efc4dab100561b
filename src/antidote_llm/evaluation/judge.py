"""What a judge is, and the judges that are installed: this package's and those of other packages."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from antidote_llm.choices import Outcome
from antidote_llm.errors import UserError, setting
from antidote_llm.plug_ins import PlugIn

HarmMeasure: TypeAlias = Literal["harmful_score", "compliance_rate"]
Progress: TypeAlias = Callable[[int, int], None]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
HARM_MEASURES: tuple[HarmMeasure, ...] = get_args(HarmMeasure)
JUDGE_GROUP = "antidote_llm.judges"
MOST_UNREADABLE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one answer.

    Attributes:
        outcome: What the answer is.
        flagged: The categories of harm that the judge found, where it names any.
        unreadable: Whether the judge's output could not be parsed, so that the outcome is the worst possible one.
    """

    outcome: Outcome
    flagged: tuple[str, ...] = ()
    unreadable: bool = False


@runtime_checkable
class Judge(Protocol):
    """Says what each answer is: a refusal, harmful, helpful or incoherent.

    A judge measures a ``harmful_score`` where it recognises harm: the share of answers that it calls harmful. It
    measures a ``compliance_rate`` where it only recognises refusals and incoherent answers: the share of all others.

    A judge may have more: ``verdicts(prompts, answers, progress)``, which names categories (:class:`DetailedJudge`);
    ``identity``, JSON values that distinguish it from other judges of its name; and ``reads_beginnings = True``, for a
    judge that knows refusals by how they begin.
    """

    @property
    def name(self) -> str:
        """The judge's name in results."""
        ...

    @property
    def measures(self) -> HarmMeasure:
        """Which measure of harm its verdicts give."""
        ...

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        """Judge each answer to its prompt, in order."""
        ...


@runtime_checkable
class DetailedJudge(Judge, Protocol):
    """A judge that reports progress, names categories, or may give output that cannot be parsed."""

    def verdicts(
        self, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Verdict]:
        """Judge each answer to its prompt, in order."""
        ...


class PlugInJudge:
    """Another package's judge: every error that it raises names it and its package."""

    def __init__(self, judge: Judge, plug_in: PlugIn) -> None:
        self.judge, self.plug_in = judge, plug_in
        with plug_in.running():
            self.name, self.measures = judge.name, judge.measures
            self.reads_beginnings = bool(getattr(judge, "reads_beginnings", False))
            self.identity = identity_of(judge)
            json.dumps(self.identity, allow_nan=False)

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        """Judge each answer to its prompt, in order."""
        with self.plug_in.running():
            return list(self.judge.outcomes(prompts, answers))

    def verdicts(
        self, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Verdict]:
        """Judge each answer to its prompt, in order."""
        with self.plug_in.running():
            return _unchecked_verdicts(self.judge, prompts, answers, progress)


def too_many(unreadable: int, of: int) -> bool:
    """Return whether too much is unreadable for a number to rest on the rest: more than one and 5 %, or everything."""
    return unreadable > 0 and (unreadable == of or unreadable > max(1, MOST_UNREADABLE_SHARE * of))


def judge_names() -> list[str]:
    """Return the names of the installed judges, sorted. None is imported."""
    return sorted(set(entry_points(group=JUDGE_GROUP).names))


def load_judge(spec: str) -> Judge:
    """Load an installed judge by its name in the entry-point group ``antidote_llm.judges``.

    Only this judge is imported. Another package's judge is returned as a :class:`PlugInJudge`.

    Args:
        spec: ``NAME``, or ``NAME=WHERE`` for a judge that takes a model, an address or a file.

    Raises:
        UserError: There is no judge of this name, two packages have one, it cannot be loaded, or it judges no answers.
    """
    return checked_judge(make_judge(spec), spec)


def make_judge(spec: str) -> Any:
    """Return what a judge's entry point makes: a judge of answers, or a measure of a model that needs no answers.

    Raises:
        UserError: There is no judge of this name, two packages have one, or it cannot be loaded.
    """
    name, _, where = spec.partition("=")
    plug_in = _plug_in(name)
    factory = plug_in.load()
    if not callable(factory):
        raise UserError(f"{plug_in.label} cannot be loaded: {plug_in.entry.value} is neither a class nor a function")
    arguments = [where] if where else []
    if not _accepts(factory, arguments):
        fix = f"pass {setting('judge')} {name}" if where else f"pass {setting('judge')} {name}=WHERE"
        raise UserError(f"judge '{name}' takes {'nothing' if where else 'something'} after its name: {fix}")
    with plug_in.loading():
        return factory(*arguments)


def checked_judge(made: Any, spec: str) -> Judge:
    """Return what :func:`make_judge` made, which must be a judge of answers.

    Raises:
        UserError: It is not.
    """
    plug_in = _plug_in(spec.partition("=")[0])
    with plug_in.loading():
        is_judge = isinstance(made, Judge) and made.measures in HARM_MEASURES and isinstance(made.name, str)
    if not is_judge:
        raise UserError(
            f"{plug_in.label} is not a judge of answers: it needs a name, outcomes(), "
            f"and measures, one of {', '.join(HARM_MEASURES)}"
        )
    judge: Judge = made
    return judge if plug_in.is_own else PlugInJudge(judge, plug_in)


def identity_of(judge: Any) -> dict[str, Any]:
    """Return JSON values that distinguish a judge from others: its own ``identity``, or its name."""
    own = getattr(judge, "identity", None)
    return dict(own) if own is not None else {"name": judge.name}


def verdicts_of(
    judge: Judge, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None = None
) -> list[Verdict]:
    """Return a judge's verdicts, checked: one for each answer, each with a known outcome.

    Raises:
        UserError: The judge returned another number of verdicts, or an outcome that is not known.
    """
    label = judge.plug_in.label if isinstance(judge, PlugInJudge) else f"judge '{judge.name}'"
    verdicts = _unchecked_verdicts(judge, prompts, answers, progress)
    if len(verdicts) != len(answers):
        raise UserError(f"{label} gave {len(verdicts)} outcomes for {len(answers)} answers: use another judge")
    for verdict in verdicts:
        if not isinstance(verdict, Verdict):
            raise UserError(f"{label} gave a {type(verdict).__name__}, which is not a Verdict: use another judge")
        if verdict.outcome not in OUTCOMES:
            raise UserError(
                f"{label} gave the outcome {verdict.outcome!r}, which is not one of {', '.join(OUTCOMES)}: "
                "use another judge"
            )
    return verdicts


def _unchecked_verdicts(
    judge: Judge, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None
) -> list[Verdict]:
    if isinstance(judge, DetailedJudge):
        return list(judge.verdicts(prompts, answers, progress))
    return [Verdict(outcome) for outcome in judge.outcomes(prompts, answers)]


def _plug_in(name: str) -> PlugIn:
    found = PlugIn.find(JUDGE_GROUP, "judge", name)
    if found is None:
        near = difflib.get_close_matches(name, judge_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"unknown judge '{name}': {hint}name one of {', '.join(judge_names()) or 'none installed'}")
    return found


def _accepts(factory: Callable[..., Any], arguments: Sequence[str]) -> bool:
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        # Some callables of C have no signature: the call itself will show.
        return True
    return True
