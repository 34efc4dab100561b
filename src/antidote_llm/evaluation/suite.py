"""What to ask a model: the suite, and the questions that it renders to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

from antidote_llm.choices import MatchMode
from antidote_llm.data.conversations import require_text
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, TokenizedRow, check_token_ids
from antidote_llm.data.thoughts import decoded_reply, without_thought
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.answers import HARMFUL, HARMLESS, TASK_PREFIX
from antidote_llm.evaluation.judge import Judge
from antidote_llm.evaluation.scoring import Scoring, by_matching
from antidote_llm.evaluation.settings import DEFAULT_NEW_TOKENS, EvaluationSettings
from antidote_llm.io.files import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Suite:
    """What to ask.

    Attributes:
        harmful: Harmful requests. A text or number in their column ``category`` groups the results.
        harmless: Harmless requests that look harmful: refusing them is over-refusal.
        tasks: The user's tasks by name; each record's response is the right answer.
        scoring: By task, what scores its answers; answers to other tasks are matched with the gold ones.
    """

    harmful: Sequence[Record] = ()
    harmless: Sequence[Record] = ()
    tasks: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    scoring: Mapping[str, Scoring] = field(default_factory=dict)

    def parts(self) -> dict[str, Sequence[Record]]:
        """Return the records by the suite name of their answers, without empty parts."""
        named = {HARMFUL: self.harmful, HARMLESS: self.harmless}
        named |= {TASK_PREFIX + name: records for name, records in self.tasks.items()}
        return {name: records for name, records in named.items() if records}

    def scorings(self, match: MatchMode) -> dict[str, Scoring]:
        """Return what scores each task, by the suite name of its answers."""
        return {TASK_PREFIX + name: self.scoring.get(name) or by_matching(match) for name in self.tasks}


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, as text for the judge (the user's last turn) and as tokens for the model (all turns)."""

    suite: str
    index: int
    category: str | None
    prompt: str
    gold: str | None
    prompt_ids: list[int]
    metric: str | None = None
    new_tokens: int | None = None

    @property
    def is_task(self) -> bool:
        """Whether it has one right answer."""
        return self.suite.startswith(TASK_PREFIX)


def questions(
    suite: Suite,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    vocabulary_size: int,
    match: MatchMode = "exact",
) -> list[Question]:
    """Render a suite.

    Raises:
        UserError: A task's record has no response to compare with, or a prompt has no tokens or one that is not in the
            vocabulary.
    """
    scorings = suite.scorings(match)
    return [
        question
        for name, records in suite.parts().items()
        for question in _part(name, records, tokenizer, renderer, vocabulary_size, scorings.get(name))
    ]


def require_questions(suite: Suite, judge: Judge | None) -> None:
    """Refuse a suite that is empty, or whose prompts have no judge.

    Raises:
        UserError: It is.
    """
    if not suite.parts():
        raise UserError("there is nothing to ask: give harmful prompts, harmless prompts or tasks")
    if judge is None and (suite.harmful or suite.harmless):
        raise UserError(
            f"harmful and harmless prompts need a judge: pass {setting('judge')}, for example refusal-patterns"
        )


def by_limit(asked: Sequence[Question], settings: EvaluationSettings) -> dict[int, list[int]]:
    """Return the places of the questions by the length of their answers, those of tasks last."""
    groups: dict[int, list[int]] = {}
    for place in sorted(range(len(asked)), key=lambda place: asked[place].is_task):
        groups.setdefault(limit_of(asked[place], settings), []).append(place)
    return groups


def limit_of(question: Question, settings: EvaluationSettings) -> int:
    """Return the most tokens of the answer to a question."""
    return question.new_tokens or settings.max_new_tokens or DEFAULT_NEW_TOKENS


def questions_sha256(asked: Sequence[Question]) -> str:
    """Return the hash of questions as they are asked and judged: tokens, last turns, gold answers and categories."""
    return sha256_json([astuple(question) for question in asked])


def scored(suite: Suite, asked: Sequence[Question], texts: Sequence[str], match: MatchMode) -> list[bool | None]:
    """Return whether each answer is right, None outside tasks.

    Raises:
        UserError: A task cannot be scored.
    """
    correct: list[bool | None] = [None] * len(asked)
    for name, scoring in suite.scorings(match).items():
        places = [place for place, question in enumerate(asked) if question.suite == name]
        found = scoring.correct(
            [asked[place].prompt for place in places],
            [texts[place] for place in places],
            [asked[place].gold or "" for place in places],
        )
        for place, right in zip(places, found, strict=True):
            correct[place] = right
    return correct


def _part(
    suite: str,
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    vocabulary_size: int,
    scoring: Scoring | None,
) -> list[Question]:
    prompts = renderer.prompts(records)
    check_token_ids(records, [TokenizedRow(ids, len(ids)) for ids in prompts], vocabulary_size)
    found = [
        Question(
            suite=suite,
            index=index,
            category=_category(record),
            prompt=_prompt(record, tokenizer),
            gold=_gold(record, tokenizer),
            prompt_ids=ids,
            metric=scoring.metric if scoring else None,
            new_tokens=scoring.new_tokens if scoring else None,
        )
        for index, (record, ids) in enumerate(zip(records, prompts, strict=True))
    ]
    for question, record in zip(found, records, strict=True):
        if scoring is not None and not scoring.takes(question.gold or ""):
            raise UserError(_no_gold(record.origin or f"{suite}, row {question.index}", question))
    return found


def _no_gold(where: str, question: Question) -> str:
    instead = f", not {(question.gold or '')[:40]!r}" if (question.gold or "").strip() else ""
    return (
        f"{where}: a task needs a response to compare with ({question.metric}){instead}: fix the row or leave it out; "
        "the answers to a task of another name are matched"
    )


def _category(record: Record) -> str | None:
    value = record.extra.get("category")
    if isinstance(value, str):
        require_text(value, f"{record.origin}: field 'category'")
    return str(value) if isinstance(value, str | int) and value != "" else None


def _prompt(record: Record, tokenizer: PreTrainedTokenizerBase) -> str:
    if record.input_ids is not None:
        return str(
            tokenizer.decode(record.input_ids[: record.response_start or None], skip_special_tokens=True)
        ).strip()
    return record.prompt if record.prompt is not None else record.text or ""


def _gold(record: Record, tokenizer: PreTrainedTokenizerBase) -> str | None:
    if record.input_ids is not None and record.response_start:
        return decoded_reply(tokenizer, record.input_ids[record.response_start :])
    return None if record.response is None else without_thought(record.response)
