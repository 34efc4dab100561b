"""Asks an opened model every question of a suite, and has the answers judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from antidote_llm.data.thoughts import decoded_reply
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.answers import HARMFUL
from antidote_llm.evaluation.backends import Backend, TransformersBackend, offset
from antidote_llm.evaluation.judge import Judge, Progress
from antidote_llm.evaluation.judging import judge_answers
from antidote_llm.evaluation.panel import answer_judges, margin_of, prompt_margins
from antidote_llm.evaluation.prompts import opening_ids, pad_id, require_room, room_for_answers, stop_ids
from antidote_llm.evaluation.settings import DEFAULT_NEW_TOKENS, EvaluationSettings
from antidote_llm.evaluation.suite import Question, Suite, by_limit, questions, require_questions

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from antidote_llm.data.rendering import Renderer
    from antidote_llm.evaluation.evaluation import Evaluation


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
    """Ask a model every question of a suite, greedily, and judge and count its answers.

    Rows of ``input_ids`` need the tokenizer too: judges and tasks read text. Where the settings have a prefill, the
    answers to harmful prompts begin with it and the model continues them. Judges see both together; a judge with
    ``reads_beginnings`` set, which knows refusals by how they begin, sees what follows the prefill. Harmless prompts
    and tasks are asked without it.

    Args:
        model: Any causal language model of transformers, or one with an adapter.
        tokenizer: Its tokenizer.
        suite: What to ask.
        judge: Judges the answers to harmful and harmless requests, or a panel; may be None where there are only tasks.
            Where it reads no answers (the likelihood margin alone), only the answers to tasks are generated.
        settings: How to ask.
        progress: Called with the number of prompts answered and their total.
        backend: Generates the answers of this model; by default the model itself.
        judging: Takes a judge's name and returns the callback of its progress: answers judged, and their total.

    Raises:
        UserError: There is nothing to ask, no tokenizer or no judge, a task's record has no response, or a prompt does
            not fit the model.
    """
    settings = settings or EvaluationSettings()
    asked = prepare_questions(model, tokenizer, suite, judge, settings)
    assert tokenizer is not None
    settings = _with_max_new_tokens(settings, room_for_answers(model, [question.prompt_ids for question in asked]))
    eos_ids = stop_ids(model, tokenizer, settings.renderer(tokenizer))
    backend = backend or TransformersBackend(model, settings.batch_size, settings.batch_tokens)
    generated = [place for place, question in enumerate(asked) if question.is_task or answer_judges(judge)]
    found = _generate(backend, [asked[place] for place in generated], settings, eos_ids, tokenizer, progress)
    answers_ids: list[list[int]] = [[] for _ in asked]
    for place, ids in zip(generated, found, strict=True):
        answers_ids[place] = ids
    openings = _openings(suite, asked, settings.renderer(tokenizer), settings.prefill)
    texts = [decoded_reply(tokenizer, [*opening, *ids]) for opening, ids in zip(openings, answers_ids, strict=True)]
    prompts_ids = [None if question.is_task else question.prompt_ids for question in asked]
    margins = prompt_margins(judge, model, tokenizer, prompts_ids, judging)
    return judge_answers(suite, asked, texts, list(map(len, answers_ids)), judge, settings, margins, judging)


def prepare_questions(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    suite: Suite,
    judge: Judge | None,
    settings: EvaluationSettings,
) -> list[Question]:
    """Render a suite for a model, and check that :func:`evaluate` can ask every question, before any is asked.

    Raises:
        UserError: As :func:`evaluate`.
    """
    require_questions(suite, judge)
    if tokenizer is None:
        raise UserError(
            f"the model folder has no tokenizer: pass {setting('tokenizer')} (judges and tasks read text, not token "
            "ids)"
        )
    vocabulary_size = model.get_input_embeddings().weight.shape[0]
    renderer = settings.renderer(tokenizer)
    asked = questions(suite, tokenizer, renderer, vocabulary_size, settings.match)
    asked = [
        replace(question, prompt_ids=question.prompt_ids + opening)
        for question, opening in zip(asked, _openings(suite, asked, renderer, settings.prefill), strict=True)
    ]
    limited = _with_max_new_tokens(settings, room_for_answers(model, [question.prompt_ids for question in asked]))
    asked = _with_task_limits(model, asked, settings)
    origins = [record.origin for records in suite.parts().values() for record in records]
    for limit, places in by_limit(asked, limited).items():
        prompts_ids = [asked[place].prompt_ids for place in places]
        require_room(model, prompts_ids, limit, [origins[place] for place in places])
    if (margin := margin_of(judge)) is not None:
        if settings.thinking:
            raise UserError(
                f"likelihood-margin is of how a reply begins, not a thought: leave {setting('thinking')} or it out"
            )
        margin.require_fits(model, tokenizer, [question.prompt_ids for question in asked if not question.is_task])
    return asked


def _openings(suite: Suite, asked: Sequence[Question], renderer: Renderer, prefill: str | None) -> list[list[int]]:
    """Return the prefill of every answer: empty except for harmful prompts."""
    if prefill is None:
        return [[] for _ in asked]
    harmful = iter(opening_ids(renderer, suite.harmful, prefill))
    return [next(harmful) if question.suite == HARMFUL else [] for question in asked]


def _with_max_new_tokens(settings: EvaluationSettings, room: int | None) -> EvaluationSettings:
    """Return settings in which the length of answers is set: results say which was used."""
    if settings.max_new_tokens is not None:
        return settings
    limit = DEFAULT_NEW_TOKENS if room is None else max(1, min(DEFAULT_NEW_TOKENS, room))
    return settings.model_copy(update={"max_new_tokens": limit})


def _with_task_limits(
    model: PreTrainedModel | PeftModel, asked: Sequence[Question], settings: EvaluationSettings
) -> list[Question]:
    """Return the questions with the answer length of their task, as far as the model has room for it."""
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


def _generate(
    backend: Backend,
    asked: Sequence[Question],
    settings: EvaluationSettings,
    eos_ids: tuple[int, ...],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None,
) -> list[list[int]]:
    """Return the answers to all questions; tasks may have a limit of their own."""
    answers: dict[int, list[int]] = {}
    for limit, places in by_limit(asked, settings).items():
        found = backend.generate(
            [asked[place].prompt_ids for place in places],
            max_new_tokens=limit,
            eos_ids=eos_ids,
            pad_id=pad_id(tokenizer, eos_ids),
            progress=offset(progress, len(answers), len(asked)),
        )
        answers |= dict(zip(places, found, strict=True))
    return [answers[place] for place in range(len(asked))]
