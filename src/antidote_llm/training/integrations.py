"""Logging integrations of transformers: TensorBoard, Weights & Biases and the like."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers.integrations import get_reporting_integration_callbacks

from antidote_llm.errors import UserError, first_line

_TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"


def require_integrations(names: Sequence[str]) -> None:
    """Refuse a logging integration that transformers does not know, or whose library is missing.

    Raises:
        UserError: Says which there are, or what to install.
    """
    try:
        for integration in get_reporting_integration_callbacks(names[0] if len(names) == 1 else list(names)):
            integration()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--report-to {','.join(names)}: {first_line(error).rstrip('. ')}: install it, or leave --report-to out"
        ) from error


@contextmanager
def tensorboard_in(folder: Path) -> Iterator[None]:
    """Name the folder that TensorBoard's integration writes to, unless the user has named one."""
    if _TENSORBOARD_FOLDER in os.environ:
        yield
        return
    os.environ[_TENSORBOARD_FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[_TENSORBOARD_FOLDER]
