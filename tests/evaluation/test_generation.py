"""Batched answers equal the answers that each prompt gets alone."""

from __future__ import annotations

import functools
import logging
import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from antidote_llm.errors import UserError
from antidote_llm.evaluation.continuous_batching import supports_continuous_batching
from antidote_llm.evaluation.generation import generate
from antidote_llm.evaluation.prompts import require_room
from tests import tiny

# Many tokens that end an answer, so that the rows of a batch end at different times.
EOS = tuple(range(5, 10))
NEW_TOKENS = 24


def prompts(count: int, longest: int = 20) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(10, tiny.VOCABULARY_SIZE) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def alone(model: Any, ids: list[int], eos: tuple[int, ...] = EOS, most: int = NEW_TOKENS) -> list[int]:
    """Answer one prompt by plain forward passes."""
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < most:
            token = int(model(torch.tensor([ids + answer])).logits[0, -1].argmax())
            if token in eos:
                break
            answer.append(token)
    return answer


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tiny.VOCABULARY_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5
    )
    return GPT2LMHeadModel(config).eval()


def mistral() -> MistralForCausalLM:
    """Return a model with a sliding window: its cache is not plain, so that its batches are static."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=tiny.VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        sliding_window=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return MistralForCausalLM(config).eval()


@pytest.fixture(params=["continuous", "static"])
def either(request: pytest.FixtureRequest, model: LlamaForCausalLM) -> PreTrainedModel:
    """Return a model that is batched continuously, and one that is not."""
    found: PreTrainedModel = model if request.param == "continuous" else mistral()
    assert supports_continuous_batching(found) == (request.param == "continuous")
    return found


@pytest.mark.parametrize("batch", [{"batch_size": 16}, {"batch_size": 5}, {"batch_tokens": 150}])
def test_a_batch_answers_as_each_prompt_alone_in_the_order_asked(
    either: PreTrainedModel, batch: dict[str, Any]
) -> None:
    model, asked = either, prompts(16)
    answers = generate(model, asked, max_new_tokens=NEW_TOKENS, eos_ids=EOS, **batch)

    assert answers == [alone(model, ids) for ids in asked]
    assert len({len(answer) for answer in answers}) > 3, "the prompts should end at different times"


def test_learned_positions_are_counted_from_the_first_real_token_and_dropout_is_off() -> None:
    model = gpt2()
    asked = prompts(6)
    expected = [alone(model, ids, (), 8) for ids in asked]
    model.train()

    assert generate(model, asked, max_new_tokens=8) == expected


def test_an_adapter_is_used_and_the_model_s_settings_are_restored(model: LlamaForCausalLM) -> None:
    torch.manual_seed(1)
    asked = prompts(4)
    without = generate(model, asked, max_new_tokens=8)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.eval()
    with_adapter = generate(adapted, asked, max_new_tokens=8)

    assert with_adapter == [alone(adapted, ids, (), 8) for ids in asked]
    assert with_adapter != without


def test_sampling_settings_of_the_model_are_ignored_without_a_warning(
    model: LlamaForCausalLM, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    asked = prompts(4)
    plain = generate(model, asked, max_new_tokens=8)
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p, own.top_k = True, 5.0, 0.5, 3
    own.repetition_penalty, own.suppress_tokens, own.min_new_tokens = 3.0, list(range(10, 30)), 8
    model.train()
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            assert generate(model, asked, max_new_tokens=8) == plain
    finally:
        transformers_logging.disable_propagation()

    assert model.generation_config is own
    assert model.training
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn] == []


def counted_steps(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    forward = model.forward

    @functools.wraps(forward)
    def counting(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    return shapes


def test_generation_stops_when_all_have_ended(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(3)
    longest = max(len(alone(model, ids)) for ids in asked)
    shapes = counted_steps(model, monkeypatch)
    generate(model, asked, max_new_tokens=100, eos_ids=EOS)

    assert 0 < sum(rows for rows, _ in shapes) <= 3 * (longest + 2) < 300


def test_unfinished_rows_move_to_another_batch(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(32, longest=3)
    expected = [alone(model, ids, most=60) for ids in asked]
    lengths = sorted(map(len, expected))
    assert lengths[-1] == 60, "one answer should never end"
    shapes = counted_steps(model, monkeypatch)

    assert generate(model, asked, max_new_tokens=60, eos_ids=EOS, batch_size=32) == expected
    assert sum(rows for rows, _ in shapes) < 32 * 60 * 0.75
    assert shapes[-1][0] < 32
    # Moving whenever a row ends would read the others 21 times again.
    assert sum(tokens > 1 for _, tokens in shapes) <= 5


def test_equal_prompts_are_answered_once(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(2)
    shapes = counted_steps(model, monkeypatch)
    answers = generate(model, [asked[0], asked[1], asked[0], asked[0]], max_new_tokens=4)

    assert max(rows for rows, _ in shapes) == 2
    assert answers[0] == answers[2] == answers[3] != answers[1]
    answers[0].append(0)
    assert answers[0] != answers[2], "the answers are the caller's to change, each by itself"


def test_progress_counts_every_prompt_and_ends_at_the_total(model: LlamaForCausalLM) -> None:
    seen: list[tuple[int, int]] = []
    asked = prompts(7)
    generate(
        model,
        [*asked, asked[0]],
        max_new_tokens=30,
        eos_ids=EOS,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == sorted(seen)
    assert seen[-1] == (8, 8)


def test_a_finished_row_is_replaced_by_the_next_prompt(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(40)
    expected = [alone(model, ids, most=60) for ids in asked]
    shapes = counted_steps(model, monkeypatch)

    assert generate(model, asked, max_new_tokens=60, eos_ids=EOS, batch_size=8) == expected
    read = [place for place, (_, tokens) in enumerate(shapes) if tokens > 1]
    assert max(rows for rows, _ in shapes) == 8
    assert len(read) > 5 and all(rows < 8 for rows, _ in (shapes[place] for place in read[1:]))
    # With static batches, the longest answer of each eight would delay the others.
    waiting = sum(max(map(len, expected[at : at + 8])) for at in range(0, 40, 8))
    assert len(shapes) - len(read) < 0.7 * waiting


def test_a_batch_never_exceeds_the_token_limit(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    forward = model.forward

    @functools.wraps(forward)
    def counting(*args: Any, **kwargs: Any) -> Any:
        held.append(kwargs["attention_mask"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    generate(model, prompts(40), max_new_tokens=60, eos_ids=EOS, batch_tokens=600)
    assert 200 < max(held) <= 600


def test_a_shared_prefix_is_read_once(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [[*range(10, 30), *ids] for ids in prompts(16)]
    expected = [alone(model, ids) for ids in asked]
    shapes = counted_steps(model, monkeypatch)

    assert generate(model, asked, max_new_tokens=NEW_TOKENS, eos_ids=EOS, batch_size=5) == expected
    assert shapes[0] == (1, 20)
    assert max(tokens for _, tokens in shapes[1:]) == max(map(len, asked)) - 20


def test_a_prompt_that_is_a_prefix_of_all_others_keeps_one_token(model: LlamaForCausalLM) -> None:
    asked = [list(range(10, 30)), list(range(10, 32)), list(range(10, 34))]
    assert generate(model, asked, max_new_tokens=8) == [alone(model, ids, (), 8) for ids in asked]


def test_learned_positions_may_all_be_used_next_to_finished_rows() -> None:
    model = gpt2()
    asked = [[10] * 60, [11] * 60, *prompts(6)]
    expected = [alone(model, ids, EOS, 4) for ids in asked]
    assert generate(model, asked, max_new_tokens=4, eos_ids=EOS) == expected


def test_the_same_call_gives_the_same_answers(either: PreTrainedModel) -> None:
    first, second = (generate(either, prompts(20), max_new_tokens=30, eos_ids=EOS, batch_size=6) for _ in range(2))
    assert first == second


def out_of_memory_above(model: Any, most_rows: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make a model run out of memory after some steps with too many rows; return the batch sizes at which it did."""
    failed: list[int] = []
    taken: list[int] = []
    forward = model.forward

    @functools.wraps(forward)
    def limited(*args: Any, **kwargs: Any) -> Any:
        taken.append(len(kwargs["input_ids"]))
        if taken[-1] > most_rows and len(taken) > steps:
            failed.append(taken[-1])
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", limited)
    return failed


@pytest.mark.parametrize("steps", [0, 3])
def test_too_little_memory_halves_the_batch(
    either: PreTrainedModel, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(8)
    expected = generate(either, asked, max_new_tokens=6)
    failed = out_of_memory_above(either, 3, steps, monkeypatch)

    assert generate(either, asked, max_new_tokens=6) == expected
    assert failed == [8, 4]


def test_a_single_prompt_that_does_not_fit_into_memory_is_named(
    either: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(either, 0, 0, monkeypatch)
    with pytest.raises(UserError, match="5 tokens does not fit"):
        generate(either, [[10] * 5], max_new_tokens=4)


@pytest.mark.parametrize(
    ("asked", "most", "message"),
    [
        ([[]], 4, "no tokens"),
        ([[10] * 120], 9, "pass max_new_tokens 8 or less"),
        ([[10] * 128], 9, "leave it out"),
        ([[10]], 0, "at least 1"),
    ],
)
def test_an_invalid_prompt_is_an_error(
    model: LlamaForCausalLM, asked: list[list[int]], most: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, asked, max_new_tokens=most)


def test_all_prompts_without_room_are_named_at_once(model: LlamaForCausalLM) -> None:
    lengths = {"a:1": 128, "a:2": 119, "a:3": 120, "a:4": 130, "a:5": 131}
    asked = [[10] * length for length in lengths.values()]
    with pytest.raises(UserError, match=r"^a:5: .* 131 tokens .*: leave it out, and likewise a:1, a:3, a:4$"):
        require_room(model, asked, 9, list(lengths))


def test_all_positions_may_be_used(model: LlamaForCausalLM) -> None:
    assert len(generate(model, [[10] * 120], max_new_tokens=8)[0]) == 8


def test_no_prompts_give_no_answers(model: LlamaForCausalLM) -> None:
    assert generate(model, [], max_new_tokens=4) == []
