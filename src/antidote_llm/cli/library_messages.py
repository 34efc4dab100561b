"""What libraries say, who quote files: shown as safely as the command's own messages, and never as its result."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from antidote_llm.io.visible_text import visible

_STDOUT = 1
_MOST_BYTES = 1 << 16


@contextmanager
def own_standard_output() -> Iterator[None]:
    """Keep standard output to this program's own words: those of compiled libraries are shown as messages at the end.

    They write past Python, and what they quote (a field of ``tokenizer.json``) may hold anything.
    """
    stream = sys.__stdout__
    if not hasattr(os, "memfd_create") or stream is None or stream is not sys.stdout or stream.fileno() != _STDOUT:
        yield
        return
    encoding, buffering = stream.encoding, 1 if stream.isatty() else -1
    with os.fdopen(os.memfd_create("standard output of libraries"), "rb") as aside:
        own = os.dup(_STDOUT)
        os.dup2(aside.fileno(), _STDOUT)
        sys.stdout = os.fdopen(own, "w", encoding=encoding, errors="backslashreplace", buffering=buffering)
        try:
            yield
        finally:
            aside.seek(0)
            sys.stderr.write(visible(aside.read(_MOST_BYTES).decode("utf-8", "backslashreplace")))


@contextmanager
def visible_messages() -> Iterator[None]:
    """Spell out control characters in all that libraries say through warnings and logging, while the block runs."""
    format_warning, make_record = warnings.formatwarning, logging.getLogRecordFactory()

    def visible_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return visible(format_warning(message, category, filename, lineno, line))

    warnings.formatwarning = visible_warning
    logging.setLogRecordFactory(_VisibleRecord)
    try:
        yield
    finally:
        warnings.formatwarning = format_warning
        logging.setLogRecordFactory(make_record)


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage())
