"""The paper's tasks, and the tasks of other packages.

Source: https://arxiv.org/abs/2408.09600, appendix A: 872 rows of SST-2, 1000 of AGNews and of GSM8K, and the rows of
AlpacaEval that the published code does not train on.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from importlib.metadata import entry_points

from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.scoring import ByAnswer, IsCorrect, Scoring
from antidote_llm.evaluation.tasks import numbers
from antidote_llm.evaluation.tasks.labels import Labels
from antidote_llm.evaluation.tasks.preference import Completes, WinRate
from antidote_llm.plug_ins import PlugIn, two_of_a_name

TASK_GROUP = "antidote_llm.tasks"


@dataclass(frozen=True, slots=True)
class Task:
    """A known task.

    Attributes:
        name: Its name on the command line and in results.
        metric: When an answer counts as right, in a few words.
        preset: Its data where no other is named.
        rows: How many rows of its preset are asked; None for all.
        skip: How many rows of its preset come before them.
        new_tokens: Most tokens of an answer.
        is_correct: Takes an answer and the gold one; None where an endpoint decides which of the two is better.
    """

    name: str
    metric: str
    preset: str
    rows: int | None
    new_tokens: int
    is_correct: IsCorrect | None
    skip: int = 0

    def scoring(self, endpoint: Completes | None = None, seed: int = 0) -> Scoring:
        """Return what scores the answers.

        Raises:
            UserError: The task needs an endpoint, and there is none.
        """
        if self.is_correct is not None:
            return ByAnswer(self.metric, self.is_correct, self.new_tokens)
        if endpoint is None:
            raise UserError(
                f"task {self.name} needs a model that compares answers: name one in `antidote evaluate` with "
                f"{setting('task_endpoint')} URL#MODEL, as in {setting('task_endpoint')} "
                "http://localhost:8000/v1#my-judge"
            )
        return WinRate(endpoint, seed, self.new_tokens)


SST2 = Labels({"positive": (), "negative": ()})
AGNEWS = Labels(
    {
        "World": ("World News",),
        "Sports": ("Sport", "Sports News"),
        "Business": ("Business News",),
        "Sci/Tech": (
            *(f"{first}{joint}{second}" for first in ("Sci", "Science") for second in ("Tech", "Technology")
              for joint in ("/", " / ", " ", "-", "", " & ", "&", " and ")),
            "Science",
            "Technology",
            "Tech",
        ),
    }
)  # fmt: skip

_OWN = {
    task.name: task
    for task in (
        Task("sst2", "label named", "sst2-test", 872, 32, SST2.is_correct),
        Task("agnews", "label named", "agnews-test", 1000, 32, AGNEWS.is_correct),
        Task("gsm8k", "final number", "gsm8k-test", 1000, 512, numbers.is_correct),
        Task("alpacaeval", "win rate", "alpacaeval", None, 512, None, skip=701),
    )
}


def task_names() -> list[str]:
    """Return the names of the known tasks, sorted."""
    return sorted({*_OWN, *entry_points(group=TASK_GROUP).names})


def load_task(name: str) -> Task | None:
    """Return a known task by its name, None for an unknown name.

    Tasks of other packages are instances of :class:`Task` in the entry-point group ``antidote_llm.tasks``.

    Raises:
        UserError: Two packages have a task of this name, or it cannot be loaded.
    """
    plug_in = PlugIn.find(TASK_GROUP, "task", name)
    if plug_in is None:
        return _OWN.get(name)
    if name in _OWN:
        raise two_of_a_name("task", name, "antidote-llm", plug_in.package)
    task = plug_in.load()
    if not isinstance(task, Task):
        raise UserError(f"{plug_in.label} ({plug_in.entry.value}) is not a {Task.__module__}.{Task.__qualname__}")
    return task if task.is_correct is None else replace(task, is_correct=_guarded(task.is_correct, plug_in))


def _guarded(is_correct: IsCorrect, plug_in: PlugIn) -> IsCorrect:
    """Return another package's scoring function, whose errors name that package."""

    def guarded(answer: str, gold: str) -> bool:
        with plug_in.running():
            return bool(is_correct(answer, gold))

    return guarded


def near_miss(name: str) -> str:
    """Return the part of an error message that names the known tasks, the nearest first."""
    near = difflib.get_close_matches(name, task_names(), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known tasks are {', '.join(task_names())}"
