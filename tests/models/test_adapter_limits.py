"""Patterns of an adapter's configuration that take too long are refused by name, before peft uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from antidote_llm.errors import UserError
from antidote_llm.io import bounded_calls as bounded
from antidote_llm.io.bounded_calls import Budget
from antidote_llm.models.load import load_model
from tests import tiny
from tests.cli.command import edit_json
from tests.conftest import Folders

ENDLESS = "(([a-z0-9_.])+)+$X"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", f"{ENDLESS}|.*(q_proj|k_proj|v_proj)"),
        ("exclude_modules", ENDLESS),
        ("modules_to_save", [ENDLESS]),
        ("layers_pattern", [ENDLESS]),
        ("rank_pattern", {ENDLESS: 8}),
        ("alpha_pattern", {ENDLESS: 8}),
    ],
)
def test_a_pattern_that_takes_too_long_is_refused(
    folders: Folders, tmp_path: Path, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "DEFAULT", Budget(seconds=0.1))
    adapter = tiny.write_adapter(tmp_path / "adapter", folders.base)
    edit_json(adapter / "adapter_config.json", **{name: value})
    with pytest.raises(UserError, match=rf"adapter_config\.json: {name} is no pattern.*takes too long.*fetch"):
        load_model(str(folders.base), str(adapter))


def test_ranks_and_patterns_that_fit_are_left_to_peft(folders: Folders, tmp_path: Path) -> None:
    adapter = tiny.write_adapter(
        tmp_path / "adapter",
        folders.base,
        rank=64,
        rank_pattern={r"layers\.1\..*q_proj": 2},
        alpha_pattern={"k_proj": 1.5},
    )
    edit_json(adapter / "adapter_config.json", target_modules=r".*\.(q|k|v)_proj")
    assert {site.shape[0] for site in load_model(str(folders.base), str(adapter)).sites if site.role == "lora_A"} == {
        2,
        64,
    }
