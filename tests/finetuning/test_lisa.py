from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.finetuning.lisa import Turn, lisa, scheduled
from antidote_llm.training.batches import IGNORED, Collator, Example
from antidote_llm.training.defense import StageData, TrainingJob, run_stage
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import train
from tests import tiny
from tests.architectures import write_checkpoint

TRAINING = TrainingSettings(learning_rate=1e-2, epochs=3, batch_size=4, weight_decay=0, warmup=0)
USER = [Record(prompt=tiny.words(2 + i % 3, i), response=tiny.words(1 + i % 4, 50 + i)) for i in range(10)]
SAFE = [Record(prompt=tiny.words(3, 100 + i), response=tiny.words(2, 150 + i)) for i in range(7)]
DATA = StageData(Renderer(tiny.tokenizer()), USER, SAFE)
IN_TURNS = {"alignment_steps": 2, "user_steps": 4}


def _model(**overrides: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"vocab_size": tiny.VOCABULARY_SIZE, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**sizes, **special, **overrides))


def _job(training: TrainingSettings = TRAINING, **given: Any) -> TrainingJob:
    return lisa.job(DATA, training, lisa.configure({**IN_TURNS, **given}))


def _learned(example: Example) -> bool:
    return any(label != IGNORED for label in example["labels"])


def _steps(job: TrainingJob, training: TrainingSettings = TRAINING) -> Iterator[list[Example]]:
    """Yield the rows of each step, without blank ones."""
    size = training.batch_size * training.accumulation
    for start in range(0, len(job.examples), size):
        yield [row for row in job.examples[start : start + size] if _learned(row)]


def _is_safe(step: Sequence[Example]) -> bool:
    safe = DATA.auxiliary_examples(TRAINING)
    kinds = {row in safe for row in step}
    assert len(kinds) == 1
    return kinds.pop()


def _trained(training: TrainingSettings = TRAINING, **given: Any) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    model = _model()
    result = run_stage(model, DATA, lisa, training, lisa.configure({**IN_TURNS, **given}))
    return dict(result.model.state_dict()), result.training.losses


def _by_formula(model: nn.Module, job: TrainingJob, rho: float, warmup: float, rate: float) -> None:
    """Minimise the cross-entropy plus rho/2 ||w - anchor||^2 with AdamW, turn by turn, as the paper's algorithm 1."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0)
    left_by = {kind: [value.detach().clone() for value in parameters] for kind in (True, False)}
    steps = list(_steps(job))
    for index, step in enumerate(steps):
        safe = _is_safe(step)
        loss: Tensor = model(**Collator(0)(step)).loss
        if index >= warmup * len(steps):
            loss = loss + rho / 2 * sum(
                ((value - anchor) ** 2).sum() for value, anchor in zip(parameters, left_by[not safe], strict=True)
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        left_by[safe] = [value.detach().clone() for value in parameters]


@pytest.mark.parametrize("warmup", [0.0, 0.4])
def test_it_is_the_papers_formula(warmup: float) -> None:
    job = _job(rho=3.0, proximal_warmup=warmup)
    model = _model().double()
    train(model, job.examples, job.training, job.objective)
    wanted = _model().double()
    _by_formula(wanted, job, 3.0, warmup, TRAINING.learning_rate)
    for (name, found), value in zip(model.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-9, msg=name)


def test_with_rho_0_it_is_supervised_fine_tuning_on_the_same_rows() -> None:
    job, model = _job(), _model()
    losses = train(model, job.examples, job.training, Objective()).losses
    weights, found = _trained(rho=0)
    assert found == losses
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_larger_rho_keeps_a_turn_nearer_to_its_start() -> None:
    training = TRAINING.model_copy(update={"max_steps": 6})
    before = _model().state_dict()
    moved = []
    for rho in (0.0, 1.0, 100.0):
        weights, _ = _trained(training, rho=rho, alignment_steps=1, user_steps=100)
        moved.append(math.sqrt(sum(float((weights[name] - before[name]).square().sum()) for name in before)))
    assert moved[0] > 1.01 * moved[1] > 1.01 * moved[2]


@pytest.mark.parametrize("batching", ["shuffled", "grouped", "ordered"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_user_row_is_used_exactly_once_per_epoch(batching: str, accumulation: int) -> None:
    training = TRAINING.model_copy(update={"batching": batching, "batch_size": 2, "accumulation": accumulation})
    user = [step for step in _steps(_job(training), training) if not _is_safe(step)]
    examples, an_epoch = DATA.examples(training), -(-10 // (2 * accumulation))
    assert len(user) == 3 * an_epoch
    for epoch in range(3):
        seen = [row for step in user[epoch * an_epoch : (epoch + 1) * an_epoch] for row in step]
        assert sorted(map(str, seen)) == sorted(map(str, examples))


def test_each_epoch_and_seed_has_its_own_order() -> None:
    def order(**given: Any) -> list[str]:
        training = TRAINING.model_copy(update=given)
        return [str(row) for step in _steps(_job(training)) if not _is_safe(step) for row in step]

    assert order()[:10] != order()[10:20]
    assert order() != order(seed=1)
    assert order() == order()
    assert order(batching="ordered")[:10] == [str(row) for row in DATA.examples(TRAINING)]


def test_grouped_batches_hold_rows_of_similar_length() -> None:
    def spread(batching: str) -> int:
        training = TRAINING.model_copy(update={"batching": batching})
        lengths = [[len(row["input_ids"]) for row in step] for step in _steps(_job(training))]
        return sum(max(step) - min(step) for step in lengths)

    assert spread("grouped") < spread("shuffled") / 2


def test_safe_rows_are_all_used_in_turn() -> None:
    safe = [row for step in _steps(_job(alignment_steps=7)) if _is_safe(step) for row in step]
    examples = sorted(map(str, DATA.auxiliary_examples(TRAINING)))
    assert len(safe) == 3 * 7 * 4
    for start in range(0, len(safe), 7):
        assert sorted(map(str, safe[start : start + 7])) == examples


def test_the_steps_alternate_and_end_with_the_user() -> None:
    kinds = "".join("a" if _is_safe(step) else "u" for step in _steps(_job()))
    assert kinds == "aauuuuaauuuuaau"
    assert len(_trained()[1]) == len(kinds)


def test_the_last_turn_can_be_on_safe_rows() -> None:
    kinds = "".join("a" if _is_safe(step) else "u" for step in _steps(_job(end_with="alignment")))
    assert kinds == "aauuuuaauuuuaauaa"


def test_the_published_code_spends_the_users_steps_on_safe_rows() -> None:
    given = lisa.configure(IN_TURNS, preset="official-code")
    job = lisa.job(DATA, TRAINING, given)
    steps = list(_steps(job))
    assert "".join("a" if _is_safe(step) else "u" for step in steps) == "aauuuuaau"
    # The user's batches that safe ones replace are lost: each epoch has three, the last of two rows.
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2, 4, 4, 2]
    assert given.model_dump()["proximal_warmup"] == 0.1


def test_max_steps_counts_the_steps_on_user_rows() -> None:
    job = _job(TRAINING.model_copy(update={"max_steps": 5}))
    assert [_is_safe(step) for step in _steps(job)].count(False) == 5
    assert job.training.max_steps == 9


@settings(max_examples=60, deadline=None)
@given(
    budget=st.integers(1, 60),
    alignment=st.integers(1, 20),
    user=st.integers(1, 20),
    replaces=st.booleans(),
    end_with=st.sampled_from(["user", "alignment", "as-scheduled"]),
)
def test_turns_alternate_and_spend_the_budget(
    budget: int, alignment: int, user: int, replaces: bool, end_with: Any
) -> None:
    turns = scheduled(budget, {"alignment": alignment, "user": user}, replaces, end_with)
    assert [turn.state for turn in turns] == ["alignment" if index % 2 == 0 else "user" for index in range(len(turns))]
    assert end_with in ("as-scheduled", turns[-1].state)
    assert all(turn.steps <= {"alignment": alignment, "user": user}[turn.state] for turn in turns)
    in_all = sum(turn.steps for turn in turns if replaces or turn.state == "user")
    assert in_all == budget or (end_with != "as-scheduled" and budget < in_all <= budget + turns[-1].steps)


def test_with_the_published_code_a_hundred_rows_end_in_a_user_turn() -> None:
    lengths: Any = {"alignment": 100, "user": 900}
    assert scheduled(400, lengths, True, "as-scheduled") == [Turn("alignment", 100), Turn("user", 300)]


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8, dropout=0)])
def test_a_batch_of_four_rows_equals_four_accumulated_rows(lora: LoraSettings | None) -> None:
    together, losses = _trained(TRAINING.model_copy(update={"lora": lora}))
    apart, losses_apart = _trained(TRAINING.model_copy(update={"lora": lora, "batch_size": 1, "accumulation": 4}))
    assert losses == pytest.approx(losses_apart, rel=1e-4)
    assert max(float((together[name] - apart[name]).abs().max()) for name in together) < 1e-3


def test_gradient_checkpointing_changes_nothing() -> None:
    kept, losses = _trained()
    again, losses_again = _trained(TRAINING.model_copy(update={"gradient_checkpointing": True}))
    assert losses == pytest.approx(losses_again, rel=1e-5)
    assert max(float((kept[name] - again[name]).abs().max()) for name in kept) < 1e-4


def test_only_adapters_are_anchored() -> None:
    model, job = _model(), _job(TRAINING.model_copy(update={"lora": LoraSettings(rank=4)}))
    result = run_stage(
        model, DATA, lisa, TRAINING.model_copy(update={"lora": LoraSettings(rank=4)}), lisa.configure(IN_TURNS)
    )
    train(result.model, job.examples, job.training, job.objective)
    names = {name for name, value in result.model.named_parameters() if value.requires_grad}
    assert job.objective.state().keys() == names


def test_it_needs_safe_rows() -> None:
    with pytest.raises(UserError, match=r"defense lisa .*: pass safe DATA"):
        lisa.job(StageData(DATA.renderer, USER), TRAINING, lisa.configure({}))


@pytest.mark.parametrize("name", ["gemma", "qwen2", "gpt2", "mixtral", "gpt_neox", "opt"])
def test_it_works_on_every_architecture(name: str, tmp_path: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, name))
    training = TRAINING.model_copy(update={"max_steps": 2, "learning_rate": 1e-3, "dtype": "bfloat16"})
    result = run_stage(model, DATA, lisa, training, lisa.configure({"alignment_steps": 1, "user_steps": 1}))
    assert result.training.steps == 4
    assert all(math.isfinite(loss) for loss in result.training.losses)
