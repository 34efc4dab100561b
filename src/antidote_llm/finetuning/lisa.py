"""Lisa: the user's data and safe data in turns, each near the weights that the other left (arXiv 2405.18641)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field

from antidote_llm.training.batches import Batch, Example, blank
from antidote_llm.training.defense import Cost, StageData, TrainingJob, finetuning_defense
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import TrainingSettings, step_count

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = Literal["alignment", "user"]

# Grouped rows are sorted by length in pools of this many batches, as transformers does.
_POOL_BATCHES = 50
# Parameters in one fused operation: fast enough, and their differences take little memory.
_FUSED = 16


class Turn(NamedTuple):
    """Some optimiser steps on one kind of data."""

    state: State
    steps: int


@finetuning_defense(
    needs_safe=True,
    cost=Cost(copies=1),
    presets={
        "paper": {"rho": 1.0, "alignment_steps": 100, "user_steps": 900},
        "official-code": {
            "rho": 1.0,
            "alignment_steps": 100,
            "user_steps": 900,
            "proximal_warmup": 0.1,
            "alignment_costs": "user-steps",
            "end_with": "as-scheduled",
        },
    },
)
def lisa(
    data: StageData,
    training: TrainingSettings,
    *,
    rho: Annotated[float, Field(ge=0, description="Strength of the pull back to where a turn began.")] = 1.0,
    alignment_steps: Annotated[int, Field(ge=1, description="Optimiser steps of a turn on safe rows, K1.")] = 100,
    user_steps: Annotated[int, Field(ge=1, description="Optimiser steps of a turn on the user's rows, K2.")] = 900,
    proximal_warmup: Annotated[
        float, Field(ge=0, le=1, description="Share of all steps, from the first, without the pull.")
    ] = 0.0,
    alignment_costs: Annotated[
        Literal["extra-steps", "user-steps"],
        Field(description="Steps on safe rows come on top, or each takes the place of a batch of the user's."),
    ] = "extra-steps",
    end_with: Annotated[
        Literal["user", "alignment", "as-scheduled"],
        Field(description="What the last turn learns from; another turn is added where it would be the other."),
    ] = "user",
) -> TrainingJob:
    """Lisa (arXiv 2405.18641): turns on safe rows and on the user's, each near the weights that the other left.

    A turn minimises its rows' cross-entropy plus rho/2 ||w - a||^2, where a is what the turn before it left (in the
    first, the initial weights), so where it starts. The reported losses are the cross-entropy alone.

    ``epochs`` or ``max_steps`` count the user's batches, and the learning-rate schedule runs over all steps. The preset
    ``official-code`` lets both kinds of turn share that budget, ends with either, and starts without the pull. It
    counts optimiser steps too; the published code does so only without gradient accumulation.
    """
    examples, replaces = data.examples(training), alignment_costs == "user-steps"
    lengths: dict[State, int] = {"alignment": alignment_steps, "user": user_steps}
    turns = scheduled(step_count(training, len(examples)), lengths, replaces, end_with)
    rows = _in_turns(turns, examples, data.auxiliary_examples(training), training, replaces)
    ends = list(accumulate(turn.steps for turn in turns))
    taken_in_order = training.model_copy(update={"batching": "ordered", "max_steps": ends[-1]})
    return TrainingJob(rows, _Proximal(rho, frozenset([0, *ends]), proximal_warmup), taken_in_order)


def scheduled(
    budget: int, lengths: Mapping[State, int], replaces: bool, end_with: State | Literal["as-scheduled"]
) -> list[Turn]:
    """Return the turns, alignment first, until the budget is spent.

    Args:
        budget: Optimiser steps on the user's rows.
        lengths: Steps of a whole turn.
        replaces: Whether steps on safe rows count against the budget too.
        end_with: The kind of the last turn, or ``as-scheduled``.
    """
    turns: list[Turn] = []
    while budget:
        state: State = "user" if len(turns) % 2 else "alignment"
        costs = state == "user" or replaces
        turns.append(Turn(state, min(lengths[state], budget) if costs else lengths[state]))
        budget -= turns[-1].steps if costs else 0
    if end_with != "as-scheduled" and end_with != turns[-1].state:
        turns.append(Turn(end_with, lengths[end_with]))
    return turns


class _Proximal(Objective):
    """Pulls the weights back to those that a turn began with."""

    def __init__(self, rho: float, starts: frozenset[int], warmup: float) -> None:
        self._rho, self._starts, self._warmup = rho, starts, warmup
        self._anchor: dict[str, Tensor] = {}

    def before_step(self, window: Sequence[Batch]) -> None:
        del window
        if self._rho and self.session.step in self._starts:
            self._anchor = {name: parameter.detach().clone() for name, parameter in self.session.parameters()}

    def adjust_gradients(self) -> None:
        import torch

        from antidote_llm.models.torch_private import add_scaled_differences

        if not self._rho or self.session.step < self._warmup * self.session.steps:
            return
        learned = [
            (parameter, parameter.grad, self._anchor[name])
            for name, parameter in self.session.parameters()
            if parameter.grad is not None
        ]
        with torch.no_grad():
            for start in range(0, len(learned), _FUSED):
                parameters, gradients, anchors = map(list, zip(*learned[start : start + _FUSED], strict=True))
                add_scaled_differences(gradients, parameters, anchors, self._rho)

    def state(self) -> dict[str, Tensor]:
        return self._anchor

    def restore(self, state: dict[str, Tensor]) -> None:
        self._anchor = {
            name: state[name].to(parameter.device) for name, parameter in self.session.parameters() if name in state
        }


def _in_turns(
    turns: Sequence[Turn],
    user: Sequence[Example],
    safe: Sequence[Example],
    training: TrainingSettings,
    replaces: bool,
) -> list[Example]:
    """Return the rows of all steps in order."""
    step_rows = training.batch_size * training.accumulation
    user_batches, safe_rows = _user_batches(user, step_rows, training), _safe_rows(safe, step_rows, training)
    rows: list[Example] = []
    for turn in turns:
        for _ in range(turn.steps):
            if turn.state == "user":
                rows += next(user_batches)
                continue
            rows += islice(safe_rows, step_rows)
            if replaces:
                next(user_batches)
    return rows


def _user_batches(rows: Sequence[Example], step_rows: int, training: TrainingSettings) -> Iterator[list[Example]]:
    """Yield the batches of one epoch after another; blank rows fill the last batch of each."""
    draw = random.Random(f"user {training.seed}")
    while True:
        order = _order(rows, step_rows, training, draw)
        for start in range(0, len(order), step_rows):
            batch = order[start : start + step_rows]
            yield batch + [blank(batch[0])] * (step_rows - len(batch))


def _safe_rows(rows: Sequence[Example], step_rows: int, training: TrainingSettings) -> Iterator[Example]:
    draw = random.Random(f"safe {training.seed}")
    while True:
        yield from _order(rows, step_rows, training, draw)


def _order(rows: Sequence[Example], step_rows: int, training: TrainingSettings, draw: random.Random) -> list[Example]:
    """Return the rows in the order of one epoch, by ``training.batching``."""
    if training.batching == "ordered":
        return list(rows)
    shuffled = draw.sample(rows, len(rows))
    if training.batching == "shuffled":
        return shuffled
    pool = _POOL_BATCHES * step_rows
    alike = [
        row
        for start in range(0, len(shuffled), pool)
        for row in sorted(shuffled[start : start + pool], key=lambda example: len(example["input_ids"]))
    ]
    whole = len(alike) - len(alike) % step_rows
    batches = [alike[start : start + step_rows] for start in range(0, whole, step_rows)]
    draw.shuffle(batches)
    return [row for batch in batches for row in batch] + alike[whole:]
