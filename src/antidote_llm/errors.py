"""The two ways in which a command ends badly: the user's error and ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_MOST_LISTED = 20


class UserError(Exception):
    """A mistake that the user can mend: one line that names the thing and the mend (exit code 2)."""


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


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, and the second where the first only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
