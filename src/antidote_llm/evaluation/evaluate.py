"""Questions and their answers: openings, lengths, and who is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.data.rendering import Renderer
from antidote_llm.data.thoughts import decoded_reply
from antidote_llm.errors import UserError
from antidote_llm.evaluation.answers import HARMFUL, TASK_PREFIX, Answer, Opinion
from antidote_llm.evaluation.backends.backend import Backend, TransformersBackend
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.generation import Progress, require_room, room_for_answers
from antidote_llm.evaluation.judge import Judge, Verdict, judged
from antidote_llm.evaluation.panel import answer_judges, margin_of, prompt_margins
from antidote_llm.evaluation.prompts import opening_ids, pad_id, stop_ids
from antidote_llm.evaluation.settings import DEFAULT_NEW_TOKENS, EvaluationSettings
from antidote_llm.evaluation.suite import Question, Suite, questions, scored
from antidote_llm.evaluation.tasks.scoring import TaskRecord


def openings(suite: Suite, asked: Sequence[Question], renderer: Renderer, prefill: str | None) -> list[list[int]]:
    """Return the opening of every answer, nothing but for harmful prompts."""
    if prefill is None:
        return [[] for _ in asked]
    harmful = iter(opening_ids(renderer, suite.harmful, prefill))
    return [next(harmful) if question.suite == HARMFUL else [] for question in asked]


def with_limit(settings: EvaluationSettings, room: int | None) -> EvaluationSettings:
    """Return the settings with the length of answers that was left open: results say what was used."""
    if settings.max_new_tokens is not None:
        return settings
    limit = DEFAULT_NEW_TOKENS if room is None else max(1, min(DEFAULT_NEW_TOKENS, room))
    return settings.model_copy(update={"max_new_tokens": limit})


def with_lengths(
    model: PreTrainedModel | PeftModel, asked: Sequence[Question], settings: EvaluationSettings
) -> list[Question]:
    """Return the questions with the length of answers that their task has, as far as the model has room for it."""
    rooms = {
        name: room_for_answers(model, [question.prompt_ids for question in asked if question.suite == name])
        for name in {question.suite for question in asked}
    }
    lengths = {
        question.suite: settings.task_max_new_tokens or _within(question.new_tokens, rooms[question.suite])
        for question in asked
        if question.is_task
    }
    return [replace(question, new_tokens=lengths.get(question.suite)) for question in asked]


def _within(new_tokens: int | None, room: int | None) -> int | None:
    return new_tokens if new_tokens is None or room is None else max(1, min(new_tokens, room))


def by_limit(asked: Sequence[Question], settings: EvaluationSettings) -> dict[int, list[int]]:
    """Return the places of the questions by the length of their answers, those of the tasks last."""
    groups: dict[int, list[int]] = {}
    for place in sorted(range(len(asked)), key=lambda place: asked[place].is_task):
        groups.setdefault(limit_of(asked[place], settings), []).append(place)
    return groups


def limit_of(question: Question, settings: EvaluationSettings) -> int:
    """Return the most tokens of the answer to a question."""
    return question.new_tokens or settings.max_new_tokens or DEFAULT_NEW_TOKENS


def ask(
    backend: Backend,
    asked: Sequence[Question],
    settings: EvaluationSettings,
    eos_ids: tuple[int, ...],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None,
) -> list[list[int]]:
    """Return the answers to all questions; tasks may have a limit of their own."""
    answers: dict[int, list[int]] = {}
    for limit, chosen in by_limit(asked, settings).items():
        already = len(answers)
        found = backend.generate(
            [asked[place].prompt_ids for place in chosen],
            max_new_tokens=limit,
            eos_ids=eos_ids,
            pad_id=pad_id(tokenizer, eos_ids),
            progress=offset(progress, already, len(asked)),
        )
        answers |= dict(zip(chosen, found, strict=True))
    return [answers[place] for place in range(len(asked))]


def offset(progress: Progress | None, already: int, total: int) -> Progress | None:
    """Return what reports progress behind what is answered already."""
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(already + done, total)


def evaluate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    suite: Suite,
    judge: Judge | None,
    settings: EvaluationSettings | None = None,
    progress: Progress | None = None,
    backend: Backend | None = None,
    judging: Callable[[str], Progress] | None = None,
) -> Evaluation:
    """Ask a model everything of a suite, greedily, and count what it answers.

    Rows of ``input_ids`` need the tokenizer too: judges and tasks read text. Where the settings hold an opening, the
    answers to harmful prompts begin with it, and the model goes on from there. Judges see both together; one that has
    ``reads_beginnings`` set, as it knows refusals by how they open, sees what follows the opening. Harmless prompts and
    tasks are asked without it.

    Args:
        model: Any causal language model of transformers, or one with an adapter.
        tokenizer: Its tokenizer.
        suite: What to ask.
        judge: Judges the answers to harmful and harmless requests, or a panel; may be None where there are only tasks.
            Where it reads no answers (the likelihood margin alone), none are generated but those of tasks.
        settings: How to ask.
        progress: Called with the number of prompts answered and their total.
        backend: Who generates the answers of this very model; the model itself where none is given.
        judging: Told a judge's name, returns what is called with the number of answers judged and their total.

    Raises:
        UserError: There is nothing to ask, no tokenizer or no judge, a task's record has no response, or a prompt does
            not fit the model.
    """
    settings = settings or EvaluationSettings()
    asked = askable(model, tokenizer, suite, judge, settings)
    assert tokenizer is not None
    settings = with_limit(settings, room_for_answers(model, [question.prompt_ids for question in asked]))
    eos_ids = stop_ids(model, tokenizer, settings.renderer(tokenizer))
    backend = backend or TransformersBackend(model, settings.batch_size, settings.batch_tokens)
    heeded = [place for place, question in enumerate(asked) if question.is_task or answer_judges(judge)]
    found = ask(backend, [asked[place] for place in heeded], settings, eos_ids, tokenizer, progress)
    answers_ids: list[list[int]] = [[] for _ in asked]
    for place, ids in zip(heeded, found, strict=True):
        answers_ids[place] = ids
    opened = openings(suite, asked, settings.renderer(tokenizer), settings.prefill)
    texts = [decoded_reply(tokenizer, [*opening, *ids]) for opening, ids in zip(opened, answers_ids, strict=True)]
    prompts_ids = [None if question.is_task else question.prompt_ids for question in asked]
    margins = prompt_margins(judge, model, tokenizer, prompts_ids, judging)
    return heard(suite, asked, texts, list(map(len, answers_ids)), judge, settings, margins, judging)


def askable(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    suite: Suite,
    judge: Judge | None,
    settings: EvaluationSettings,
) -> list[Question]:
    """Render a suite for a model, and refuse what :func:`evaluate` could not ask it, before anything is asked.

    Raises:
        UserError: As :func:`evaluate`.
    """
    if not suite.parts():
        raise UserError("there is nothing to ask: give harmful prompts, harmless prompts or tasks")
    if judge is None and (suite.harmful or suite.harmless):
        raise UserError("harmful and harmless prompts need a judge: pass --judge, for example refusal-patterns")
    if tokenizer is None:
        raise UserError(
            "the model folder has no tokenizer: pass --tokenizer (judges and tasks read text, not token ids)"
        )
    vocabulary_size = model.get_input_embeddings().weight.shape[0]
    renderer = settings.renderer(tokenizer)
    asked = questions(suite, tokenizer, renderer, vocabulary_size, settings.match)
    asked = [
        replace(question, prompt_ids=question.prompt_ids + opening)
        for question, opening in zip(asked, openings(suite, asked, renderer, settings.prefill), strict=True)
    ]
    limited = with_limit(settings, room_for_answers(model, [question.prompt_ids for question in asked]))
    asked = with_lengths(model, asked, settings)
    origins = [record.origin for records in suite.parts().values() for record in records]
    for limit, places in by_limit(asked, limited).items():
        prompts_ids = [asked[place].prompt_ids for place in places]
        require_room(model, prompts_ids, limit, [origins[place] for place in places])
    if (margin := margin_of(judge)) is not None:
        if settings.thinking:
            raise UserError("likelihood-margin is of how a reply begins, not a thought: leave --thinking or it out")
        margin.require_fits(model, tokenizer, [question.prompt_ids for question in asked if not question.is_task])
    return asked


def heard(
    suite: Suite,
    asked: Sequence[Question],
    texts: Sequence[str | None],
    lengths: Sequence[int],
    judge: Judge | None,
    settings: EvaluationSettings,
    margins: Sequence[float | None] | None = None,
    judging: Callable[[str], Progress] | None = None,
) -> Evaluation:
    """Judge, score and count the answers to all questions.

    Args:
        suite: What the questions are of.
        asked: The questions.
        texts: What the model replied to each; None where a server gave no answer, which counts as the worst that is
            possible: harmful, an over-refusal, or wrong.
        lengths: How many tokens each reply took.
        judge: Judges the replies to harmful and harmless requests, or a panel.
        settings: How the model was asked.
        margins: The likelihood margin of each question, where a panel measures it.
        judging: As for :func:`evaluate`.

    Raises:
        UserError: A judge cannot do its work, or the margin is wanted of a model that is not open here.
    """
    if margins is None and margin_of(judge) is not None:
        raise UserError("likelihood-margin needs the model's probabilities: open the model here, or leave it out")
    opinions = _opinions(judge, asked, texts, settings.prefill, judging)
    correct = scored(suite, asked, [text or "" for text in texts], settings.match)
    answers = [
        Answer(
            suite=question.suite,
            index=question.index,
            category=question.category,
            prompt=question.prompt,
            gold=question.gold,
            answer=text or "",
            outcome=said[0].outcome if said else None,
            correct=right if text is not None or right is None else False,
            new_tokens=length,
            opinions=said,
            margin=margin,
        )
        for question, text, said, right, length, margin in zip(
            asked, texts, opinions, correct, lengths, margins or [None] * len(asked), strict=True
        )
    ]
    used = judge if suite.harmful or suite.harmless else None
    panel = {each.name: each.measures for each in answer_judges(used)}
    name, measures = (used.name if used else None), next(iter(panel.values()), None)
    margin = margin_of(used)
    tasks, openings = _task_records(asked, settings), margin.openings if margin else None
    found = Evaluation.of(answers, name, measures, settings, tasks, panel, openings)
    return found.model_copy(update={"unanswered": sum(text is None for text in texts)})


def _task_records(asked: Sequence[Question], settings: EvaluationSettings) -> dict[str, TaskRecord]:
    return {
        question.suite.removeprefix(TASK_PREFIX): TaskRecord(
            metric=question.metric, max_new_tokens=limit_of(question, settings)
        )
        for question in asked
        if question.metric is not None
    }


def _opinions(
    judge: Judge | None,
    asked: Sequence[Question],
    texts: Sequence[str | None],
    prefill: str | None,
    judging: Callable[[str], Progress] | None,
) -> list[tuple[Opinion, ...]]:
    """Return the judges' words on every answer that is not a task's, the first one's first."""
    judged_places = [place for place, question in enumerate(asked) if not question.is_task]
    answered = {place: text for place in judged_places if (text := texts[place]) is not None}
    found: list[tuple[Opinion, ...]] = [()] * len(asked)
    prompts = [asked[place].prompt for place in answered]
    for each in answer_judges(judge) if judged_places else ():
        opening = prefill if getattr(each, "reads_beginnings", False) else None
        answers = [_behind(opening, asked[place], text) for place, text in answered.items()]
        verdicts = judged(each, prompts, answers, judging(each.name) if judging else None)
        said_of = dict(zip(answered, verdicts, strict=True))
        for place in judged_places:
            said = said_of.get(place) or _worst(asked[place])
            found[place] += (Opinion(each.name, said.outcome, said.flagged, said.unreadable),)
    return found


def _worst(question: Question) -> Verdict:
    """Return the verdict on an answer that never came."""
    return Verdict("harmful" if question.suite == HARMFUL else "refusal", unreadable=True)


def _behind(opening: str | None, question: Question, text: str) -> str:
    """Return what the model said itself, behind a prefilled opening; all of it where that is nothing."""
    if opening is None or question.suite != HARMFUL or not text.casefold().startswith(opening.casefold()):
        return text
    return text[len(opening) :].lstrip(" \n,.:;-") or text
