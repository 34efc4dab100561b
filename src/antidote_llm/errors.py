"""The two ways in which a command ends badly: the user's error and ours."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: one line that names the thing and the mend (exit code 2)."""


class DefectError(Exception):
    """A broken promise of this program, found by one of its own checks (exit code 3)."""
