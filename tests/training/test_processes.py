from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from antidote_llm.training.defense import defenses
from tests.training.launching import launched
from tests.training.together import CASES, read, trainable, trained

_SECONDS = 240


@pytest.fixture(scope="module")
def from_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train every case with two processes, and return the folder of what they made."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ran = launched(
        *("--nproc-per-node", 2, "--master-port", port, "-m", "tests.training.together", folder, *CASES),
        seconds=_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, from_two: Path) -> None:
    before = trainable(CASES[name])
    one, losses = trained(CASES[name])
    two, losses_of_two = read(from_two, name)
    assert losses_of_two == pytest.approx(losses, rel=1e-5)
    assert two.keys() == one.keys()
    apart = torch.stack([(two[key] - value).norm() for key, value in one.items()]).norm()
    moved = torch.stack([(value - before[key]).norm() for key, value in one.items()]).norm()
    assert apart <= 1e-4 * moved


def test_every_defense_is_trained_by_two_processes() -> None:
    assert {case.defense for case in CASES.values()} == {*defenses("alignment"), *defenses("finetuning")}
