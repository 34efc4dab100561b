"""Shows what the rooms below the command line warn of, each in one line on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = "antidote_llm"
_MOST_CHARACTERS = 600


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
        """Write a warning as one line, without characters that steer a terminal: names in it come from files."""
        said = " ".join(record.getMessage().split())
        shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in said)
        cut = shown if len(shown) <= _MOST_CHARACTERS else shown[:_MOST_CHARACTERS] + "..."
        sys.stderr.write(f"warning: {cut}\n")
