from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from antidote_llm.choices import TrainingStage as Stage
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, TokenizedRow
from antidote_llm.errors import UserError
from antidote_llm.training.batches import IGNORED, Batch, Collator, examples_of
from antidote_llm.training.defense import StageData, defense_named, run_stage
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import RunOptions, train
from tests import tiny

SETTINGS = TrainingSettings(learning_rate=1e-2, max_steps=3, batch_size=4, warmup=0, schedule="constant")
ROWS = [
    TokenizedRow([1, *range(5, 7 + index % 5), 2, *range(9, 11 + index % 4), 3], 4 + index % 5) for index in range(8)
]
LORA = LoraSettings(rank=4, alpha=8, dropout=0)


def _model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=tiny.VOCABULARY_SIZE, pad_token_id=0, eos_token_id=3, bos_token_id=None, **sizes)
    )


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def _trained(settings: TrainingSettings, rows: list[TokenizedRow] = ROWS) -> tuple[dict[str, torch.Tensor], float]:
    model = _model()
    result = train(model, examples_of(rows, settings), settings)
    return _weights(model), result.mean_loss


def _assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) <= tolerance


def test_the_same_seed_gives_the_same_bits() -> None:
    (first, first_loss), (second, second_loss) = _trained(SETTINGS), _trained(SETTINGS)
    assert first_loss == second_loss
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_seed_decides_the_order() -> None:
    assert _trained(SETTINGS)[1] != _trained(SETTINGS.model_copy(update={"seed": 1}))[1]


def test_a_batch_of_four_rows_equals_four_accumulated_rows() -> None:
    together, loss = _trained(SETTINGS)
    apart, loss_apart = _trained(SETTINGS.model_copy(update={"batch_size": 1, "accumulation": 4}))
    assert loss == pytest.approx(loss_apart, rel=1e-5)
    _assert_close(apart, together, 2e-4)


def test_pads_do_not_change_the_loss() -> None:
    model = _model().eval()
    collate = Collator(pad_token_id=0)
    examples = examples_of(ROWS, SETTINGS)

    def loss_and_count(chosen: list[Any]) -> tuple[float, int]:
        batch = collate(chosen)
        counted = int((batch["labels"][:, 1:] != IGNORED).sum())
        with torch.no_grad():
            return float(model(**batch).loss) * counted, counted

    together, counted = loss_and_count(examples)
    alone = [loss_and_count([example]) for example in examples]
    assert counted == sum(count for _, count in alone)
    assert together == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)


def test_the_pad_token_does_not_matter() -> None:
    examples = examples_of(ROWS, SETTINGS)
    model = _model().eval()
    with torch.no_grad():
        losses = [float(model(**Collator(pad)(examples)).loss) for pad in (0, 17)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)


def test_only_the_response_is_learned() -> None:
    (example,) = examples_of([TokenizedRow([1, 5, 6, 2, 7, 8, 3], 4)], SETTINGS)
    assert example["labels"] == [IGNORED] * 4 + [7, 8, 3]
    (example,) = examples_of(
        [TokenizedRow([1, 5, 6, 2, 7, 8, 3], 4)], SETTINGS.model_copy(update={"learn_from": "all"})
    )
    assert example["labels"] == [1, 5, 6, 2, 7, 8, 3]


def test_all_of_a_text_is_learned() -> None:
    assert examples_of([TokenizedRow([5, 6, 7], 0)], SETTINGS)[0]["labels"] == [5, 6, 7]


@pytest.mark.parametrize("rows", [[], [TokenizedRow([1, 5, 6], 3)], [TokenizedRow([4], 0)]])
def test_nothing_to_learn_from_is_an_error(rows: list[TokenizedRow]) -> None:
    with pytest.raises(UserError):
        examples_of(rows, SETTINGS)


def test_a_response_beyond_max_length_is_an_error() -> None:
    with pytest.raises(UserError, match=r"row 1 .*max_length 6"):
        examples_of(
            [TokenizedRow([1, 2, 3], 1), TokenizedRow(list(range(9)), 6)], SETTINGS.model_copy(update={"max_length": 6})
        )


def test_errors_name_the_file_and_line_of_a_row() -> None:
    rows = [Record(prompt=tiny.words(9, index), response="zob", origin=f"rows.jsonl:{index + 1}") for index in (3, 4)]
    data = StageData(Renderer(tiny.tokenizer()), rows[:1], rows[1:])
    short = SETTINGS.model_copy(update={"max_length": 6})
    with pytest.raises(UserError, match=r"^rows\.jsonl:4 has no response token within max_length 6"):
        data.examples(short)
    with pytest.raises(UserError, match=r"^rows\.jsonl:5 "):
        data.auxiliary_examples(short)


class _Recording(Objective):
    """Records its calls, and learns nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lengths: list[int] = []
        self.gradients: list[float] = []

    def before_step(self, window: Sequence[Batch]) -> None:
        self.calls.append(f"before {self.session.step} of {self.session.steps}: {len(window)}")

    def loss(self, batch: Batch) -> torch.Tensor:
        self.calls.append("loss")
        self.lengths += batch["attention_mask"].sum(1).tolist()
        return super().loss(batch) * 0

    def adjust_gradients(self) -> None:
        self.calls.append("adjust")
        self.gradients += [
            float(value.grad.abs().max()) for _, value in self.session.parameters() if value.grad is not None
        ]

    def after_step(self) -> None:
        self.calls.append("after")


def test_grouped_batches_hold_the_same_rows() -> None:
    settings = SETTINGS.model_copy(update={"batching": "grouped", "max_steps": None, "epochs": 1})
    objective = _Recording()
    train(_model(), examples_of(ROWS, settings), settings, objective)
    assert sorted(objective.lengths) == sorted(len(row.input_ids) for row in ROWS)


def test_ordered_batches_keep_the_order_of_the_rows() -> None:
    settings = SETTINGS.model_copy(update={"batching": "ordered", "max_steps": None, "epochs": 1})
    objective = _Recording()
    train(_model(), examples_of(ROWS, settings), settings, objective)
    assert objective.lengths == [len(row.input_ids) for row in ROWS]


def test_an_objective_sees_every_step_and_decides_what_is_learned() -> None:
    settings = SETTINGS.model_copy(update={"weight_decay": 0, "batch_size": 2, "accumulation": 2, "max_steps": 2})
    model, objective = _model(), _Recording()
    before = _weights(model)
    result = train(model, examples_of(ROWS, settings), settings, objective)
    steps = [[f"before {step} of 2: 2", "loss", "loss", "adjust", "after"] for step in range(2)]
    assert objective.calls == [*steps[0], *steps[1]]
    assert result.losses == (0, 0)
    assert set(objective.gradients) == {0}
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    class Broken(Objective):
        def loss(self, batch: Batch) -> torch.Tensor:
            return super().loss(batch) * float("nan")

    with pytest.raises(UserError, match="not finite at step 1: lower learning_rate"):
        train(_model(), examples_of(ROWS, SETTINGS), SETTINGS, Broken())


def test_weights_that_are_not_finite_after_the_last_step_end_the_run() -> None:
    class Spoilt(Objective):
        def adjust_gradients(self) -> None:
            if self.session.step == SETTINGS.max_steps - 1:  # type: ignore[operator]
                next(value for _, value in self.session.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]

    with pytest.raises(UserError, match="not finite after step 3"):
        train(_model(), examples_of(ROWS, SETTINGS), SETTINGS, Spoilt())


def test_the_losses_are_those_of_every_step() -> None:
    settings = SETTINGS.model_copy(update={"batch_size": 2, "accumulation": 4, "max_steps": 1})
    model, examples = _model(), examples_of(ROWS, settings)
    with torch.no_grad():
        wanted = float(model(**Collator(0)(examples)).loss)
    assert list(train(model, examples, settings).losses) == pytest.approx([wanted], rel=1e-6)


def test_new_adapters_change_nothing_and_training_them_leaves_the_base_unchanged() -> None:
    model = _model()
    before = _weights(model)
    ids_BT = torch.tensor([[1, 5, 6, 2]])
    with torch.no_grad():
        wanted = model(input_ids=ids_BT).logits
        adapted = attach_lora(model, LORA, seed=0)
        assert torch.equal(adapted(input_ids=ids_BT).logits, wanted)
    train(adapted, examples_of(ROWS, SETTINGS), SETTINGS)
    after = {name: w for name, w in adapted.get_base_model().state_dict().items() if "lora_" not in name}
    assert all(torch.equal(weight, before[name.replace("proj.base_layer.", "proj.")]) for name, weight in after.items())
    with torch.no_grad():
        assert not torch.equal(adapted(input_ids=ids_BT).logits, wanted)


def test_unknown_adapter_targets_are_an_error() -> None:
    with pytest.raises(UserError, match="c_attn"):
        attach_lora(_model(), LoraSettings(targets=("c_attn",)), seed=0)


@pytest.mark.parametrize("stage", ["alignment", "finetuning"])
def test_the_model_learns_its_rows_in_both_stages(stage: Stage) -> None:
    rows = [Record(prompt=tiny.words(3, index), response=tiny.words(2, 50 + index)) for index in range(4)]
    model = _model()
    settings = SETTINGS.model_copy(update={"max_steps": 60, "learning_rate": 5e-3})
    run_stage(model, StageData(Renderer(tiny.tokenizer()), rows), defense_named(stage, "sft"), settings)
    prompt = tiny.tokenizer()(f"<|user|> {rows[0].prompt} <|end|><|assistant|> ", return_tensors="pt")
    answer_BT = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tiny.tokenizer().decode(answer_BT[0, -2:]) == rows[0].response


def test_every_step_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    train(
        _model(),
        examples_of(ROWS, SETTINGS),
        SETTINGS,
        running=RunOptions(on_step=lambda step, steps: told.append((step, steps))),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert capsys.readouterr().out == ""


def test_the_defaults_are_the_papers_fine_tuning_stage() -> None:
    settings, lora = TrainingSettings(), LoraSettings()
    assert (settings.learning_rate, settings.weight_decay, settings.epochs, settings.batch_size) == (1e-4, 0.1, 20, 5)
    assert (settings.schedule, settings.warmup) == ("constant", 0)
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (256, 4, 0, ("q_proj", "k_proj", "v_proj"))


def test_training_leaves_the_configuration_unchanged() -> None:
    model = _model()
    train(model, examples_of(ROWS, SETTINGS), SETTINGS.model_copy(update={"gradient_checkpointing": True}))
    assert model.config.use_cache
    assert not model.is_gradient_checkpointing


def test_a_configuration_without_use_cache_gets_none() -> None:
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=tiny.VOCABULARY_SIZE, **sizes))
    train(model, examples_of(ROWS, SETTINGS), SETTINGS)
    assert "use_cache" not in model.config.to_dict()
