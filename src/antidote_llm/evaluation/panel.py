"""A panel of several judges, and where they disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from antidote_llm.choices import Outcome
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.answers import Answer
from antidote_llm.evaluation.judge import HarmMeasure, Judge, Progress, checked_judge, identity_of, make_judge
from antidote_llm.evaluation.likelihood_margin import LikelihoodMargin
from antidote_llm.evaluation.metrics import Estimate, share

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Disagreement(BaseModel):
    """On how many answers two judges differ, and on which; rows are named, not shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judges: tuple[str, str] = Field(description="The two.")
    share: Estimate = Field(description="Of the answers that both judged, in percent.")
    rows: tuple[tuple[str, int], ...] = Field(description="Suite and index of each answer that they differ on.")


def disagreements(answers: Sequence[Answer], measures: Mapping[str, HarmMeasure]) -> tuple[Disagreement, ...]:
    """Return where each two judges differ, by their names and what they measure.

    Where one of the two cannot distinguish harmful from helpful, both outcomes count as compliance.
    """
    judged = [answer for answer in answers if answer.opinions]
    found = []
    for pair in combinations(measures, 2):
        recognise_harm = all(measures[name] == "harmful_score" for name in pair)
        compared = [
            {each.judge: _comparable(each.outcome, recognise_harm) for each in answer.opinions} for answer in judged
        ]
        differs = [outcomes[pair[0]] != outcomes[pair[1]] for outcomes in compared]
        if differs:
            rows = [(answer.suite, answer.index) for answer, other in zip(judged, differs, strict=True) if other]
            found.append(Disagreement(judges=pair, share=share(differs), rows=tuple(rows)))
    return tuple(found)


def _comparable(outcome: Outcome, recognise_harm: bool) -> str:
    return outcome if recognise_harm or outcome not in ("harmful", "helpful") else "complies"


@dataclass(frozen=True)
class Panel:
    """Several judges, the first of which decides the outcomes, and the likelihood margin where it is asked for.

    There may be no judges where there is a margin.
    """

    judges: tuple[Judge, ...]
    margin: LikelihoodMargin | None = None

    @property
    def name(self) -> str:
        """The first judge's name, or the margin's."""
        return self.judges[0].name if self.judges else LikelihoodMargin.name

    @property
    def measures(self) -> HarmMeasure:
        """The first judge's measure; a margin alone measures no answers, and is closest to a compliance rate."""
        return self.judges[0].measures if self.judges else "compliance_rate"

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that distinguish this panel from others."""
        return {
            "judges": [identity_of(judge) for judge in self.judges],
            "margin": self.margin and self.margin.identity,
        }

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        """Return the first judge's outcomes."""
        return self.judges[0].outcomes(prompts, answers)


def load_panel(specs: Sequence[str]) -> Judge:
    """Load judges as :func:`~antidote_llm.evaluation.judge.load_judge` does. A single judge is returned by itself.

    Raises:
        UserError: There is no judge of a name, it cannot be loaded, or one is named twice.
    """
    margins, judges = [], []
    for spec in specs:
        if isinstance(made := make_judge(spec), LikelihoodMargin):
            margins.append(made)
        else:
            judges.append(checked_judge(made, spec))
    names = [judge.name for judge in judges] + [margin.name for margin in margins]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{setting('judge')} {name} is given twice: name each judge once")
    if len(judges) == 1 and not margins:
        return judges[0]
    return Panel(tuple(judges), margins[0] if margins else None)


def answer_judges(judge: Judge | None) -> tuple[Judge, ...]:
    """Return the judges that read answers, in order."""
    if judge is None:
        return ()
    return judge.judges if isinstance(judge, Panel) else (judge,)


def margin_of(judge: Judge | None) -> LikelihoodMargin | None:
    """Return the likelihood margin of a panel, None where it is not asked for."""
    return judge.margin if isinstance(judge, Panel) else None


def prompt_margins(
    judge: Judge | None,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[Sequence[int] | None],
    judging: Callable[[str], Progress] | None = None,
) -> list[float | None]:
    """Return the margin of every prompt, None for a prompt that is None and where no margin is asked for."""
    margin = margin_of(judge)
    chosen = {place: ids for place, ids in enumerate(prompts_ids) if ids is not None}
    if margin is None or not chosen:
        return [None] * len(prompts_ids)
    bar = judging(margin.name) if judging else None
    values = dict(zip(chosen, margin.margins(model, tokenizer, [*chosen.values()], bar), strict=True))
    return [values.get(place) for place in range(len(prompts_ids))]
