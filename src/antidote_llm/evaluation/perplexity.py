"""Perplexity of a text, in sliding windows.

Axes: B windows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from antidote_llm.data.records import Record
from antidote_llm.errors import UserError, setting
from antidote_llm.evaluation.judge import Progress
from antidote_llm.evaluation.metrics import CONFIDENCE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

JOINT = "\n\n"
MOST_WINDOW = 2048
_FEWEST_TOKENS = 4
_TOKENS_AT_ONCE = 512
_LOGITS_AT_ONCE = 2**28


class Perplexity(BaseModel):
    """Perplexity with its 95 % interval; a number from 1 up, not a percentage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float = Field(description="Exponential of the mean negative log-likelihood of a token, in nats.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")
    tokens: int = Field(ge=1, description="How many tokens were predicted.")
    window: int = Field(ge=1, description="Most tokens that the model saw at once.")
    stride: int = Field(ge=1, description="How many tokens a window is behind the one before it.")

    @model_validator(mode="after")
    def _ordered(self) -> Perplexity:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is not between {self.low} and {self.high}")
        return self


@dataclass(frozen=True, slots=True)
class PerplexityText:
    """A tokenised text, and the windows in which it is read.

    Attributes:
        ids: Its tokens, without special tokens.
        start: The token that the tokenizer puts before a text, if any; it precedes every window.
        window: Most tokens seen at once, ``start`` included.
        stride: Tokens from the start of one window to the start of the next.
    """

    ids: tuple[int, ...]
    start: tuple[int, ...]
    window: int
    stride: int

    @classmethod
    def of(
        cls,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase | None,
        records: Sequence[Record],
        window: int | None = None,
        stride: int | None = None,
    ) -> PerplexityText:
        """Join rows of text, an empty line between them, and tokenise them as one text.

        Args:
            model: The model that will read it.
            tokenizer: Its tokenizer.
            records: Rows of ``text``.
            window: Most tokens seen at once; by default 2048 or the model's positions.
            stride: By default half a window. A smaller stride gives every token more context, and takes longer.

        Raises:
            UserError: There is no tokenizer or no text, or a window does not fit the model or the stride.
        """
        if tokenizer is None:
            raise UserError(f"the model folder has no tokenizer: pass {setting('tokenizer')} (perplexity is of a text)")
        for record in records:
            if record.text is None:
                raise UserError(f"{record.origin or 'a row'}: perplexity needs rows of text: map a column to text")
        ids = tokenizer(JOINT.join(record.text or "" for record in records), add_special_tokens=False, verbose=False)
        text = tuple(ids["input_ids"])
        if len(text) < _FEWEST_TOKENS:
            raise UserError(f"the text for perplexity has {len(text)} tokens: give at least {_FEWEST_TOKENS}")
        vocabulary = model.get_input_embeddings().weight.shape[0]
        if max(text) >= vocabulary:
            raise UserError(f"token {max(text)} of the text is not in the model's vocabulary of {vocabulary}")
        start = _start(tokenizer)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        window = window or min(MOST_WINDOW, positions or MOST_WINDOW)
        stride = stride or max(1, window // 2)
        if positions is not None and window > positions:
            raise UserError(
                f"{setting('perplexity_window')} {window}: the model has {positions} positions: "
                f"pass {positions} or less"
            )
        # The first token of a window has no context, so that windows must overlap by one token.
        furthest = window - 1
        if not 1 <= stride <= furthest:
            raise UserError(
                f"{setting('perplexity_stride')} {stride}: it must be between 1 and {furthest}, "
                f"less than the window of {window}"
            )
        return cls(text, start, window, stride)

    def spans(self) -> list[tuple[int, int, int]]:
        """Return the start, the first predicted token and the end of each window."""
        room = self.window - len(self.start)
        spans, begin, predicted = [], 0, 0 if self.start else 1
        while predicted < len(self.ids):
            end = min(begin + room, len(self.ids))
            spans.append((begin, predicted, end))
            begin, predicted = begin + self.stride, end
        return spans


def perplexity(
    model: PreTrainedModel | PeftModel,
    text: PerplexityText,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Return exp of the mean negative log-likelihood of a text's tokens.

    Every token is predicted once, in the first window that holds it: after at least ``window - stride`` tokens, except
    in the first window. Where the tokenizer adds no token before a text, the first token is not predicted.

    The interval is exp of the interval of the mean negative log-likelihood, by Student's t over the means of
    consecutive batches of tokens, as many as the square root of their number: neighbouring tokens are not independent.
    It covers other texts of this kind, not other models. Source: Flegal & Jones, Ann. Statist. 38
    (2010) 1034-1070 (batch means).

    Args:
        model: Any causal language model of transformers, or one with an adapter.
        text: The tokenised text.
        batch_size: Most windows at once, about a gigabyte of logits where not given; halved where the device's memory
            does not suffice.
        progress: Called with the number of windows read and their total.

    Raises:
        UserError: A window does not fit into the device's memory, or the model gives no finite likelihood.
    """
    nll_T = token_nll(model, text, batch_size=batch_size, progress=progress)
    if not np.isfinite(nll_T).all():
        raise UserError("the model gives a token of the text no finite likelihood: its weights or its type are broken")
    mean, half = float(nll_T.mean()), half_width(nll_T)
    try:
        value, low, high = (math.exp(log) for log in (mean, mean - half, mean + half))
    except OverflowError as error:
        raise UserError(f"the mean negative log-likelihood of a token is {mean:.4g}: the model is broken") from error
    return Perplexity(value=value, low=low, high=high, tokens=len(nll_T), window=text.window, stride=text.stride)


def token_nll(
    model: PreTrainedModel | PeftModel,
    text: PerplexityText,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Return the negative log-likelihood of every predicted token, in nats, in the order of the text.

    Raises:
        UserError: A window does not fit into the device's memory.
    """
    import torch

    spans, found = text.spans(), list[NDArray[np.float64]]()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    batch_size = batch_size or max(1, _LOGITS_AT_ONCE // (text.window * vocabulary))
    done, was_training = 0, model.training
    model.eval()
    try:
        with torch.inference_mode():
            # Only the last window may be shorter: grouped by length, windows need no padding.
            for _, equally_long in groupby(spans, key=lambda span: span[2] - span[0]):
                pending = list(equally_long)
                while pending:
                    batch = pending[:batch_size]
                    try:
                        found += _read(model, text, batch)
                    except torch.OutOfMemoryError as error:
                        if len(batch) == 1:
                            raise UserError(
                                f"a window of {text.window} tokens does not fit into the device's memory: "
                                f"lower {setting('perplexity_window')}"
                            ) from error
                        batch_size = len(batch) // 2
                        continue
                    pending = pending[len(batch) :]
                    done += len(batch)
                    if progress is not None:
                        progress(done, len(spans))
    finally:
        model.train(was_training)
    return np.concatenate(found)


def half_width(nll_T: NDArray[np.float64]) -> float:
    """Return half the width of the 95 % interval of the mean, by batch means.

    Raises:
        UserError: There are fewer than four tokens.
    """
    from scipy.special import stdtrit

    batches = math.isqrt(len(nll_T))
    if batches < 2:
        raise UserError(f"the text for perplexity has {len(nll_T)} tokens to predict: give at least {_FEWEST_TOKENS}")
    parts = np.array_split(nll_T, batches)
    sizes_S = np.array([len(part) for part in parts])
    means_S = np.array([part.mean() for part in parts])
    weights_S = sizes_S / sizes_S.sum()
    spread = float(np.sum(weights_S * (means_S - nll_T.mean()) ** 2)) / (batches - 1)
    return float(stdtrit(batches - 1, 0.5 + CONFIDENCE / 2)) * math.sqrt(spread)


def _read(
    model: PreTrainedModel | PeftModel, text: PerplexityText, spans: Sequence[tuple[int, int, int]]
) -> list[NDArray[np.float64]]:
    """Return the negative log-likelihoods of the tokens that windows of one length predict."""
    import torch

    windows = [[*text.start, *text.ids[begin:end]] for begin, _, end in spans]
    input_ids_BT = torch.tensor(windows, device=model.device)
    logits_BTV = model(input_ids=input_ids_BT, use_cache=False).logits
    found = []
    for (begin, predicted, _), logits_TV, ids_T in zip(spans, logits_BTV, input_ids_BT, strict=True):
        first = predicted - begin + len(text.start)
        pieces = [
            torch.nn.functional.cross_entropy(
                logits_TV[at - 1 : min(at + _TOKENS_AT_ONCE, len(ids_T)) - 1].float(),
                ids_T[at : at + _TOKENS_AT_ONCE],
                reduction="none",
            )
            for at in range(first, len(ids_T), _TOKENS_AT_ONCE)
        ]
        found.append(torch.cat(pieces).double().cpu().numpy())
    return found


def _start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token that the tokenizer puts before a text, if any."""
    bos = tokenizer.bos_token_id
    added = tokenizer("x")["input_ids"]
    return (int(bos),) if bos is not None and added[:1] == [bos] else ()
