"""Where the judges of a panel differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.errors import UserError
from antidote_llm.evaluation.answers import Answer
from antidote_llm.evaluation.judge import HarmMeasure, Judge, Outcome, Progress, identity_of, load_judge, make_judge
from antidote_llm.evaluation.judges.likelihood_margin import LikelihoodMargin
from antidote_llm.evaluation.metrics import Estimate, share


class Disagreement(BaseModel):
    """On how many answers two judges differ, and on which; rows are named, not shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judges: tuple[str, str] = Field(description="The two.")
    share: Estimate = Field(description="Of the answers that both judged, in percent.")
    rows: tuple[tuple[str, int], ...] = Field(description="Suite and index of each answer that they differ on.")


def disagreements(answers: Sequence[Answer], measures: Mapping[str, HarmMeasure]) -> tuple[Disagreement, ...]:
    """Return where each two judges differ.

    Beside a judge that cannot tell harm from help, both count as going along: two judges differ only in what both of
    them can tell.

    Args:
        answers: Answers with their opinions.
        measures: What each judge measures, by name.
    """
    judged = [answer for answer in answers if answer.opinions]
    found = []
    for pair in combinations(measures, 2):
        tells_harm = all(measures[name] == "harmful_score" for name in pair)
        words = [{each.judge: _word(each.outcome, tells_harm) for each in answer.opinions} for answer in judged]
        differs = [word[pair[0]] != word[pair[1]] for word in words]
        if differs:
            rows = [(answer.suite, answer.index) for answer, other in zip(judged, differs, strict=True) if other]
            found.append(Disagreement(judges=pair, share=share(differs), rows=tuple(rows)))
    return tuple(found)


def _word(outcome: Outcome, tells_harm: bool) -> str:
    return outcome if tells_harm or outcome not in ("harmful", "helpful") else "goes along"


@dataclass(frozen=True)
class Panel:
    """Judges, and the likelihood margin where it is asked for; a judge itself, whose word is the first one's.

    Attributes:
        judges: Those who read answers, the first at the top; may be none where there is a margin.
        margin: What measures the model without answers.
    """

    judges: tuple[Judge, ...]
    margin: LikelihoodMargin | None = None

    @property
    def name(self) -> str:
        """The first judge's, or the margin's."""
        return self.judges[0].name if self.judges else LikelihoodMargin.name

    @property
    def measures(self) -> HarmMeasure:
        """The first judge's; a margin alone measures no answers, and comes closest to compliance."""
        return self.judges[0].measures if self.judges else "compliance_rate"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this panel from others, as JSON values."""
        return {
            "judges": [identity_of(judge) for judge in self.judges],
            "margin": self.margin and self.margin.identity,
        }

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        """Return the first judge's outcomes."""
        return self.judges[0].outcomes(prompts, answers)


def load_panel(specs: Sequence[str]) -> Judge:
    """Load judges by their names, as :func:`load_judge`; one alone is returned as it is.

    Raises:
        UserError: There is no judge of a name, it cannot be loaded, or one comes twice.
    """
    margins, judges = [], []
    for spec in specs:
        if isinstance(made := make_judge(spec), LikelihoodMargin):
            margins.append(made)
        else:
            judges.append(load_judge(spec))
    names = [judge.name for judge in judges] + [margin.name for margin in margins]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--judge {name} is given twice: name each judge once")
    if len(judges) == 1 and not margins:
        return judges[0]
    return Panel(tuple(judges), margins[0] if margins else None)


def answer_judges(judge: Judge | None) -> tuple[Judge, ...]:
    """Return those who read answers, the first at the top."""
    if judge is None:
        return ()
    return judge.judges if isinstance(judge, Panel) else (judge,)


def margin_of(judge: Judge | None) -> LikelihoodMargin | None:
    """Return what measures the model without answers, if it is asked for."""
    return judge.margin if isinstance(judge, Panel) else None


def prompt_margins(
    judge: Judge | None,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[Sequence[int] | None],
    judging: Callable[[str], Progress] | None = None,
) -> list[float | None]:
    """Return the margin of every prompt, None for those left out and where no margin is asked for."""
    margin = margin_of(judge)
    chosen = {place: ids for place, ids in enumerate(prompts_ids) if ids is not None}
    if margin is None or not chosen:
        return [None] * len(prompts_ids)
    bar = judging(margin.name) if judging else None
    values = dict(zip(chosen, margin.margins(model, tokenizer, [*chosen.values()], bar), strict=True))
    return [values.get(place) for place in range(len(prompts_ids))]
