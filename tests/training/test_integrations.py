from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from antidote_llm.alignment.sft import sft
from antidote_llm.errors import UserError
from antidote_llm.training.trainer import RunOptions, require_integrations, tensorboard_in, train
from tests.training.steps import TRAINING, job_of, llama

FOLDER = "TENSORBOARD_LOGGING_DIR"


class Noting(TrainerCallback):
    """Writes where TensorBoard's integration would."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        folder = Path(os.environ[FOLDER])
        folder.mkdir(parents=True)
        (folder / "events").write_text("")


class Missing(TrainerCallback):
    def __init__(self) -> None:
        raise RuntimeError("Missing requires missing to be installed. Run `pip install missing`.")


@pytest.fixture(autouse=True)
def integrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    for name, integration in (("noting", Noting), ("missing", Missing)):
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, integration)


def test_tensorboard_writes_to_the_folder_of_logs(tmp_path: Path) -> None:
    job = job_of(sft)
    train(llama(), job.examples, TRAINING, running=RunOptions(report_to=("noting",), logs=tmp_path / "logs"))
    assert (tmp_path / "logs" / "events").is_file()
    assert FOLDER not in os.environ


def test_the_users_own_folder_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, "mine")
    with tensorboard_in(tmp_path):
        assert os.environ[FOLDER] == "mine"
    assert os.environ[FOLDER] == "mine"


@pytest.mark.parametrize("name", ["missing", "nonsense"])
@pytest.mark.parametrize("beside", [(), ("noting",)])
def test_a_missing_integration_is_named(name: str, beside: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=rf"^report_to .*{name}: .*(installed|supported)"):
        require_integrations((*beside, name))


def test_installed_integrations_are_accepted() -> None:
    for names in ((), ("none",), ("noting",)):
        require_integrations(names)
