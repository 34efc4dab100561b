"""The two ways in which a command ends badly: the user's error and ours."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend: one line that names the thing and the mend (exit code 2)."""


class DefectError(Exception):
    """A broken promise of this program, found by one of its own checks (exit code 3)."""


def changed_meanwhile(path: Path) -> UserError:
    """Return the error of a file that is not what it was when it was opened."""
    return UserError(f"{path} changed while it was read: wait until nothing writes there, and run again")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, and the second where the first only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
