"""What a workflow says while it runs, and who listens: the command line, a log, or nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from antidote_llm.errors import argument_of_setting, shown_settings

_LOGGER = logging.getLogger("antidote_llm.workflows")


class Reporter(Protocol):
    """Listens to a workflow; settings are marked in messages as :func:`antidote_llm.errors.setting` marks them."""

    def say(self, text: str) -> None:
        """Take a message about what goes on."""
        ...

    def warn(self, text: str) -> None:
        """Take a message that the user should not miss."""
        ...

    def progress(self, what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Follow a step of known length: the function that is yielded takes how much more is done."""
        ...

    def stages(self, unit: str) -> AbstractContextManager[Callable[[str, int, int], None]]:
        """Follow several steps: the function that is yielded takes a step's name, how much is done, and of how much."""
        ...


class LogReporter:
    """Passes messages to the package's logger, and shows no progress: what Python callers get by default."""

    def say(self, text: str) -> None:
        """Log a message as information."""
        _LOGGER.info("%s", shown_settings(text, argument_of_setting))

    def warn(self, text: str) -> None:
        """Log a warning."""
        _LOGGER.warning("%s", shown_settings(text, argument_of_setting))

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Log that a step starts."""
        _LOGGER.info("%s: %d %s", what, total, unit)
        yield lambda _: None

    @contextmanager
    def stages(self, unit: str) -> Iterator[Callable[[str, int, int], None]]:
        """Follow nothing."""
        del unit
        yield lambda _, __, ___: None


def by_steps(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """Return a callback that takes how much is done in all, of one that takes how much more."""
    last = 0

    def moved(done: int, _: int) -> None:
        nonlocal last
        advance(done - last)
        last = done

    return moved
