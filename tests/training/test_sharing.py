from __future__ import annotations

import pytest

from antidote_llm.errors import UserError
from antidote_llm.io.processes import is_first_process
from antidote_llm.training.trainer import require_shareable


def test_processes_that_cannot_connect_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR is not set: start with torchrun"):
        require_shareable(4)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    require_shareable(4)
    with pytest.raises(UserError, match=r"batch_size 3 .*pass batch_size 4"):
        require_shareable(3)


@pytest.mark.parametrize(("count", "rank", "first"), [("1", "3", True), ("2", "1", False), ("2", "0", True)])
def test_the_rank_matters_with_several_processes_only(
    count: str, rank: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setenv("RANK", rank)
    assert is_first_process() == first
