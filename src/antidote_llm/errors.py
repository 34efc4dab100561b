"""The two ways in which a command ends badly: the user's error and ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_MOST_LISTED = 20
_LONGEST_REASON = 200
# Around a setting's name in the text of an error: non-characters, which Unicode keeps for a program's own use.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_SETTING = re.compile(f"{_OPEN}([^{_CLOSE}]+){_CLOSE}")


def setting(name: str) -> str:
    """Return the name of a setting as the text of an error holds it: each interface shows it in its own way.

    The command line shows ``max_ram`` as ``--max-ram``, Python as ``max_ram``.
    """
    return f"{_OPEN}{name}{_CLOSE}"


def shown_settings(text: str, show: Callable[[str], str]) -> str:
    """Return a text with the names of its settings as an interface shows them."""
    return _SETTING.sub(lambda found: show(found[1]), text)


def option_name(name: str) -> str:
    """Return a setting's option on the command line."""
    return "--" + name.replace("_", "-")


def argument_of_setting(name: str) -> str:
    """Return a setting as an argument of Python: ``no_cache`` is ``cache=False``."""
    return f"{name.removeprefix('no_')}=False" if name.startswith("no_") else name


class UserError(Exception):
    """A mistake that the user can fix: one line that names the thing and the fix (exit code 2).

    Its text names settings by :func:`setting`. As a string it shows them as Python's arguments.
    """

    @property
    def text(self) -> str:
        """The text in which settings are still marked: for an error that quotes this one, and for other interfaces."""
        return super().__str__()

    def __str__(self) -> str:
        return shown_settings(self.text, argument_of_setting)


class KeptError(UserError):
    """Something kept to go on from is damaged: what else is kept stays as it is."""


class DefectError(Exception):
    """A broken promise of this program, found by one of its own checks (exit code 3)."""


def changed_meanwhile(path: Path) -> UserError:
    """Return the error of a file that is not what it was when it was opened."""
    return UserError(f"{path} changed while it was read: wait until nothing writes there, and run again")


def listed(names: Sequence[str], most: int = _MOST_LISTED) -> str:
    """Return names in a line, and how many more there are than it holds."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, and the second where the first only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def out_of_memory(error: Exception) -> bool:
    """Say whether an error is that memory ran out, on the CPU or on a GPU."""
    # By name: importing torch to know its class takes seconds. Of the CPU's memory it has no class of its own.
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


@contextmanager
def tokenizer_errors(whose: str, what: str) -> Iterator[None]:
    """Turn what the tokenizers library raises over a broken tokenizer into one error.

    Raises:
        UserError: Says whose tokenizer it is and what could not be done with it.
    """
    try:
        yield
    except BaseException as error:
        if not _is_of_tokenizers(error):
            raise
        reason = first_line(error).rstrip(". ")[:_LONGEST_REASON]
        raise UserError(
            f"{whose or 'the model'}: the tokenizer cannot {what} ({reason}): name another with "
            f"{setting('tokenizer')}, or fetch it again"
        ) from error


def _is_of_tokenizers(error: BaseException) -> bool:
    """Whether an error comes from Rust: of no class of its own, or of one that no handler of exceptions catches."""
    return type(error) is Exception or type(error).__name__ == "PanicException" or isinstance(error, OverflowError)
