"""A fact about a checkpoint is looked up once, and read from the object that it belongs to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.models import config, tensor_names
from antidote_llm.models.checkpoint import open_model_checkpoint
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from tests import tiny
from tests.conftest import Folders


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often a configuration is parsed, and how often names in files are led to those in a model."""
    counts: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(config, "_parse_config")
    counted(tensor_names, "names_in_model")
    return counts


@pytest.mark.parametrize("layers_on_disk", [False, True])
def test_the_facts_of_an_adapters_base_are_looked_up_once(
    folders: Folders, lookups: Counter[str], layers_on_disk: bool
) -> None:
    opened = load_model(str(folders.base), str(folders.adapter), layers_on_disk=layers_on_disk)
    target = resolve_target(opened)
    opened.without_adapter()
    assert lookups == {"_parse_config": 1, "names_in_model": 1} and target.names is opened.names


def test_the_facts_of_two_compared_models_are_looked_up_once_each(
    folders: Folders, tmp_path: Path, lookups: Counter[str]
) -> None:
    tuned = tiny.write_model(tmp_path / "tuned", seed=1)
    resolve_target(load_model(str(tuned)), aligned=str(folders.base))
    # The third look is at how the sites of the fine-tune are made.
    assert lookups == {"_parse_config": 2, "names_in_model": 3}


def test_what_is_made_of_a_configuration_is_the_callers_own(folders: Folders) -> None:
    checkpoint = open_model_checkpoint(str(folders.base))
    changed = config.parsed_config(checkpoint, False)
    changed.hidden_size = -1
    assert config.parsed_config(checkpoint, False).hidden_size == checkpoint.config["hidden_size"]


def test_the_tensors_of_a_checkpoint_are_found_once(folders: Folders) -> None:
    checkpoint = open_model_checkpoint(str(folders.base))
    assert checkpoint.tensors is checkpoint.tensors and "model.norm.weight" in checkpoint.tensors
