"""Mix-in: safe rows among the user's, as in SafeInstr (arXiv 2309.07875) and VLGuard (arXiv 2402.02207)."""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from antidote_llm.errors import UserError, setting
from antidote_llm.training.defense import StageData, TrainingJob, finetuning_defense
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import TrainingSettings


# SafeInstr adds three rows per hundred; the runs of Safe Delta (ICML 2025) add ten.
@finetuning_defense(needs_safe=True, presets={"paper": {"safe_share": 0.03}, "safe-delta": {"safe_share": 0.1}})
def mixin(
    data: StageData,
    training: TrainingSettings,
    *,
    safe_share: Annotated[float, Field(gt=0, description="Safe rows that are added, as a share of the user's.")] = 0.1,
    safe_count: Annotated[int | None, Field(ge=1, description="Safe rows that are added; overrides the share.")] = None,
) -> TrainingJob:
    """Mix-in: supervised fine-tuning on the user's rows with some safe rows among them.

    The safe rows are a random sample without replacement, at random positions; the user's rows keep their
    order where ``training.batching`` is ``ordered``. An epoch passes over all of them.

    Raises:
        UserError: There are fewer safe rows than are wanted.
    """
    user, safe = data.examples(training), data.auxiliary_examples(training)
    wanted = safe_count or max(1, round(safe_share * len(user)))
    if wanted > len(safe):
        raise UserError(
            f"{setting('safe')} has {len(safe)} rows, but {wanted} are wanted: give more, or pass "
            f"{setting('safe_count')} {len(safe)}"
        )
    draw = random.Random(training.seed)
    added = iter(draw.sample(safe, wanted))
    places = set(draw.sample(range(len(user) + wanted), wanted))
    own = iter(user)
    examples = [next(added if place in places else own) for place in range(len(user) + wanted)]
    return TrainingJob(examples, Objective(), training)
