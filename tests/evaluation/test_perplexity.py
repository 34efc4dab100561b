"""Perplexity equals that of computing token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.evaluation.perplexity import PerplexityText, half_width, perplexity, token_nll
from tests import tiny

ROWS = [Record(text=tiny.words(20, seed)) for seed in range(4)]


def beginning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Make the tokenizer put a token before every text."""
    tokenizer.bos_token = "<|user|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|user|> $A", special_tokens=[("<|user|>", 1)])
    return tokenizer


def by_hand(model: LlamaForCausalLM, context: Sequence[int], token: int) -> float:
    with torch.inference_mode():
        logits_V = model(input_ids=torch.tensor([context])).logits[0, -1].double()
    return -float(logits_V.log_softmax(-1)[token])


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 15), (16, 1), (7, 3), (128, 64)])
def test_every_token_is_predicted_once_from_its_window(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, begins: bool, window: int, stride: int
) -> None:
    text = PerplexityText.of(model, beginning(tokenizer) if begins else tokenizer, ROWS, window, stride)
    assert len(text.ids) == 80
    assert len(text.start) == begins
    wanted, room = [], window - begins
    for place in range(0 if begins else 1, 80):
        # The first window that holds the token.
        begin = max(0, math.ceil((place + 1 - room) / stride)) * stride
        wanted.append(by_hand(model, [*text.start, *text.ids[begin:place]], text.ids[place]))
    np.testing.assert_allclose(token_nll(model, text), wanted, rtol=1e-4)
    found = perplexity(model, text)
    assert found.value == pytest.approx(math.exp(np.mean(wanted)), rel=1e-4)
    assert (found.tokens, found.window, found.stride) == (79 + begins, window, stride)
    assert found.low < found.value < found.high


def test_a_uniform_model_has_the_vocabulary_size_as_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.nn.init.zeros_(model.lm_head.weight)
    found = perplexity(model, PerplexityText.of(model, tokenizer, ROWS))
    assert found.value == pytest.approx(tiny.VOCABULARY_SIZE)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    text, seen = PerplexityText.of(model, tokenizer, ROWS, 16, 5), list[tuple[int, int]]()
    found = token_nll(model, text, batch_size=batch_size, progress=lambda *step: seen.append(step))
    np.testing.assert_allclose(found, token_nll(model, text), rtol=1e-5)
    assert seen[-1] == (len(text.spans()), len(text.spans()))


def test_strides_change_nothing_where_one_window_holds_all(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.train()
    found = [perplexity(model, PerplexityText.of(model, tokenizer, ROWS, 100, stride)) for stride in (1, 50, 99)]
    assert len({one.value for one in found}) == 1
    assert model.training


def test_too_little_memory_halves_the_batch_of_windows(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, forward, most = PerplexityText.of(model, tokenizer, ROWS, 16, 5), model.forward, 2

    def small(input_ids: torch.Tensor, **more: object) -> object:
        if len(input_ids) > most:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **more)

    wanted = token_nll(model, text)
    monkeypatch.setattr(model, "forward", small)
    np.testing.assert_allclose(token_nll(model, text, batch_size=8), wanted, rtol=1e-5)
    most = 0
    with pytest.raises(UserError, match="lower perplexity_window"):
        token_nll(model, text)


@given(st.integers(2, 300), st.integers(2, 40), st.booleans(), st.data())
def test_windows_cover_a_text_without_gap_or_overlap(
    tokens: int, window: int, begins: bool, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    spans = PerplexityText(tuple(range(tokens)), (0,) * begins, window, stride).spans()
    assert [place for _, first, end in spans for place in range(first, end)] == list(range(1 - begins, tokens))
    for begin, first, end in spans:
        assert end - begin + begins <= window
        assert first > begin or begins


def test_the_interval_covers_the_mean_at_its_confidence() -> None:
    drawn = np.random.default_rng(0)
    hit = 0
    for _ in range(600):
        nll_T = drawn.gamma(2.0, 1.0, 400)
        hit += abs(nll_T.mean() - 2.0) <= half_width(nll_T)
    assert 0.92 <= hit / 600 <= 0.98


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([Record(prompt="zob")], {}, "rows of text"),
        ([Record(text="zob mid")], {}, "2 tokens: give at least 4"),
        (ROWS, {"window": 129}, "128 positions"),
        (ROWS, {"window": 16, "stride": 16}, "between 1 and 15"),
    ],
)
def test_an_invalid_text_or_window_is_an_error(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    records: list[Record],
    options: dict[str, int],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        PerplexityText.of(model, tokenizer, records, **options)


def test_a_broken_model_is_an_error(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(UserError, match="no finite likelihood"):
        perplexity(model, PerplexityText.of(model, tokenizer, ROWS))
