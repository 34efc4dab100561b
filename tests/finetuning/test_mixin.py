from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.finetuning.mixin import mixin
from antidote_llm.training.batches import Example
from antidote_llm.training.defense import StageData, run_stage
from antidote_llm.training.settings import TrainingSettings
from antidote_llm.training.trainer import train
from tests import tiny

TRAINING = TrainingSettings(learning_rate=1e-2, epochs=2, batch_size=4, warmup=0)
USER = [Record(prompt=tiny.words(3, index), response=tiny.words(2, 50 + index)) for index in range(20)]
SAFE = [Record(prompt=tiny.words(4, 100 + index), response=tiny.words(3, 150 + index)) for index in range(7)]
DATA = StageData(Renderer(tiny.tokenizer()), USER, SAFE)


def _rows(training: TrainingSettings = TRAINING, preset: str | None = None, **given: Any) -> list[Example]:
    return list(mixin.job(DATA, training, mixin.configure(given, preset)).examples)


def _safe(rows: list[Example]) -> list[Example]:
    safe = DATA.auxiliary_examples(TRAINING)
    return [row for row in rows if row in safe]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, 2), ({"safe_share": 0.3}, 6), ({"safe_share": 0.001}, 1), ({"safe_count": 7}, 7), ({"preset": "paper"}, 1)],
)
def test_the_requested_number_of_safe_rows_is_added(given: dict[str, Any], wanted: int) -> None:
    rows = _rows(**given)
    added = _safe(rows)
    assert len(added) == wanted == len({str(row) for row in added})
    assert [row for row in rows if row not in added] == DATA.examples(TRAINING)


def test_the_seed_decides_which_safe_rows_and_where() -> None:
    assert _rows(safe_count=4) == _rows(safe_count=4)
    other = _rows(TRAINING.model_copy(update={"seed": 1}), safe_count=4)
    assert sorted(map(str, _safe(other))) != sorted(map(str, _safe(_rows(safe_count=4))))
    places = [index for index, row in enumerate(other) if row in _safe(other)]
    assert places != list(range(20, 24))


def test_it_is_supervised_fine_tuning_on_all_rows() -> None:
    def model() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=tiny.VOCABULARY_SIZE, pad_token_id=0, eos_token_id=3, **sizes))

    trained, wanted = model(), model()
    result = run_stage(trained, DATA, mixin, TRAINING, mixin.configure({}))
    assert result.training.losses == train(wanted, _rows(), TRAINING).losses
    assert result.training.steps == 2 * 6
    weights = trained.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in wanted.state_dict().items())


@pytest.mark.parametrize("given", [{"safe_count": 8}, {"safe_share": 0.4}])
def test_too_few_safe_rows_are_an_error(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"safe has 7 rows, but 8 are wanted: .*safe_count 7"):
        _rows(**given)


def test_no_safe_rows_are_an_error() -> None:
    with pytest.raises(UserError, match=r"defense mixin .*: pass safe DATA"):
        mixin.job(StageData(DATA.renderer, USER), TRAINING, mixin.configure({}))
