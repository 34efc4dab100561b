"""Evaluates a model that is already served behind an OpenAI-compatible address: messages in, text out.

The server renders the prompts with its own template and ends answers by its own rules. No model is opened here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.data.thoughts import without_thought
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.answers import HARMFUL
from antidote_llm.evaluation.endpoint import Failed, Failures, UnusableAnswerError
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.judge import Judge, Progress, too_many
from antidote_llm.evaluation.judging import judge_answers
from antidote_llm.evaluation.panel import margin_of
from antidote_llm.evaluation.settings import DEFAULT_NEW_TOKENS, EvaluationSettings
from antidote_llm.evaluation.suite import Question, Suite, by_limit, questions, require_questions
from antidote_llm.io.cache import KeptLines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The fields by which vLLM and similar servers continue the last message instead of answering it.
CONTINUING: Mapping[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
_BYTE_VALUES = 256


class Server(Protocol):
    """Answers conversations, as :class:`~antidote_llm.evaluation.endpoint.Endpoint` does."""

    url: str
    model: str

    def complete_all(
        self,
        asked: Sequence[Sequence[Mapping[str, str]]],
        max_tokens: int,
        answered: Callable[[int, str], None] | None = None,
        extra: Mapping[str, Any] | None = None,
        failed: Failed | None = None,
    ) -> list[str]:
        """Answer many conversations."""
        ...


class _Conversations(Renderer):
    """Renders a prompt as the conversation that is sent: the bytes of its JSON take the place of token ids."""

    def __init__(self, settings: EvaluationSettings) -> None:
        super().__init__(None, "plain", system=settings.system)

    def prompts(self, records: Sequence[Record]) -> list[list[int]]:
        """Render prompts without responses."""
        return [list(json.dumps(self._messages(record), ensure_ascii=False).encode()) for record in records]

    def _messages(self, record: Record) -> list[dict[str, str]]:
        if record.prompt is None:
            kind = "a text" if record.text is not None else "token ids"
            raise UserError(
                f"{record.origin or 'a row'}: {kind}, which no chat endpoint takes: give the row a prompt, or evaluate "
                "the model's folder"
            )
        messages = [{"role": turn.role, "content": turn.content} for turn in record.conversation()]
        if self.system is not None and all(message["role"] != "system" for message in messages):
            messages.insert(0, {"role": "system", "content": self.system})
        return messages


def prepare_conversations(suite: Suite, judge: Judge | None, settings: EvaluationSettings) -> list[Question]:
    """Render a suite as conversations, and check that every one can be sent, before any is.

    Raises:
        UserError: There is nothing to ask or no judge, a row is a text or token ids, a task's record has no response,
            or the settings are for models that are opened here.
    """
    require_questions(suite, judge)
    if margin_of(judge) is not None:
        raise UserError("likelihood-margin computes with the model itself: open its folder, or leave that judge out")
    if settings.template not in ("auto", "chat"):
        raise UserError(
            f"{setting('template')} {settings.template}: an endpoint renders prompts itself: leave "
            f"{setting('template')} out"
        )
    if settings.thinking:
        raise UserError(
            f"{setting('thinking')}: an endpoint decides by itself whether its model thinks: leave "
            f"{setting('thinking')} out"
        )
    # Every row has a prompt, or the renderer raises an error: no tokenizer is needed to read it.
    no_tokenizer = cast("PreTrainedTokenizerBase", None)
    asked = questions(suite, no_tokenizer, _Conversations(settings), _BYTE_VALUES, settings.match)
    lengths = [settings.task_max_new_tokens or question.new_tokens for question in asked]
    return [
        replace(question, new_tokens=length if question.is_task else None, prompt_ids=_with_prefill(question, settings))
        for question, length in zip(asked, lengths, strict=True)
    ]


def evaluate_served(
    server: Server,
    suite: Suite,
    judge: Judge | None,
    settings: EvaluationSettings | None = None,
    progress: Progress | None = None,
    kept: KeptLines | None = None,
    judging: Callable[[str], Progress] | None = None,
) -> Evaluation:
    """Ask a served model every question of a suite, greedily, and judge and count its answers.

    Servers do not say how many tokens an answer has: ``new_tokens`` of every answer is 0. A prompt without a usable
    answer counts as the worst possible one; a warning names the first such prompt.

    Args:
        server: The server that answers.
        suite: What to ask: prompts, with their history.
        judge: Judges the answers to harmful and harmless requests.
        settings: How to ask. The template is the server's.
        progress: Called with the number of prompts answered and their total.
        kept: The answers of an interrupted run, to which those of this run are added.
        judging: Takes a judge's name and returns the callback of its progress: answers judged, and their total.

    Raises:
        UserError: As :func:`prepare_conversations`; or the server does not answer, or too often unusably.
    """
    settings = settings or EvaluationSettings()
    if settings.max_new_tokens is None:
        settings = settings.model_copy(update={"max_new_tokens": DEFAULT_NEW_TOKENS})
    asked = prepare_conversations(suite, judge, settings)
    texts = [
        _complete_answer(question, text, settings)
        for question, text in _answers(server, asked, settings, progress, kept)
    ]
    return judge_answers(suite, asked, texts, [0] * len(asked), judge, settings, judging=judging)


def _answers(
    server: Server,
    asked: Sequence[Question],
    settings: EvaluationSettings,
    progress: Progress | None,
    kept: KeptLines | None,
) -> list[tuple[Question, str | None]]:
    """Return every question with its answer; equal conversations are sent once."""
    found: dict[int, str | None] = {}
    failures = Failures()
    for limit, places in by_limit(asked, settings).items():
        for continues in (False, True):
            new: dict[tuple[int, ...], list[int]] = {}
            for place in (place for place in places if _is_prefilled(asked[place], settings) is continues):
                if kept is not None and (text := kept.get([asked[place].prompt_ids, limit])) is not None:
                    found[place] = text
                else:
                    new.setdefault(tuple(asked[place].prompt_ids), []).append(place)
            recorder = _AnswerRecorder(found, asked, list(new.values()), limit, progress, kept)
            conversations = [_messages(asked[same[0]]) for same in new.values()]
            continuing = CONTINUING if continues else None
            server.complete_all(conversations, limit, recorder, continuing, partial(recorder.failed, failures))
    if too_many(len(failures.errors), len(asked)):
        raise next(iter(failures.errors.values()))
    failures.warn(f"{len(asked)} prompts", "count as answered in the worst way")
    return [(question, found[place]) for place, question in enumerate(asked)]


@dataclass(frozen=True)
class _AnswerRecorder:
    """Records the answers to some of the questions as they arrive."""

    found: dict[int, str | None]
    asked: Sequence[Question]
    places: Sequence[Sequence[int]]
    limit: int
    progress: Progress | None
    kept: KeptLines | None

    def __call__(self, at: int, text: str) -> None:
        same = self.places[at]
        self.found.update(dict.fromkeys(same, text))
        if self.kept is not None:
            self.kept.add([self.asked[same[0]].prompt_ids, self.limit], text)
        if self.progress is not None:
            self.progress(len(self.found), len(self.asked))

    def failed(self, failures: Failures, at: int, error: UnusableAnswerError) -> None:
        """Record a question without a usable answer; it is not kept, so that the next run asks it again."""
        for place in self.places[at]:
            failures(place, error)
            self.found[place] = None


def _is_prefilled(question: Question, settings: EvaluationSettings) -> bool:
    return settings.prefill is not None and question.suite == HARMFUL


def _with_prefill(question: Question, settings: EvaluationSettings) -> list[int]:
    """Return the bytes of a conversation, which ends in the prefill where there is one."""
    if not _is_prefilled(question, settings):
        return question.prompt_ids
    messages = [*_messages(question), {"role": "assistant", "content": str(settings.prefill)}]
    return list(json.dumps(messages, ensure_ascii=False).encode())


def _messages(question: Question) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(bytes(question.prompt_ids))
    return found


def _complete_answer(question: Question, text: str | None, settings: EvaluationSettings) -> str | None:
    """Return an answer without its thought, and with its prefill, which some servers repeat and others do not."""
    if text is None:
        return None
    reply = without_thought(text)
    if not _is_prefilled(question, settings):
        return reply.strip()
    opening = str(settings.prefill)
    return (reply if reply.lstrip().startswith(opening) else opening + reply).strip()
