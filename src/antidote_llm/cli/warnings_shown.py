"""Shows what the rooms below the command line warn of, each in one line on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from antidote_llm.io.visible_text import error_line

_PACKAGE = "antidote_llm"


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show warnings of the package's loggers while the block runs."""
    logger, handler = logging.getLogger(_PACKAGE), _ToStandardError(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _ToStandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a warning as one line, safe to look at: names in it come from files."""
        sys.stderr.write(f"warning: {error_line(record.getMessage())}\n")
