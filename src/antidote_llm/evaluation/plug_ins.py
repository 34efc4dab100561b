"""Judges and tasks of other packages: found by name, loaded, and named in every error that they raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from antidote_llm.errors import UserError, first_line

_OWN_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class PlugIn:
    """An entry point of this package or another one.

    Attributes:
        kind: ``judge`` or ``task``.
        entry: The entry point.
    """

    kind: str
    entry: EntryPoint

    @classmethod
    def find(cls, group: str, kind: str, name: str) -> PlugIn | None:
        """Return the entry point of a name, None where there is none.

        Raises:
            UserError: Two packages have one.
        """
        found = [cls(kind, entry) for entry in entry_points(group=group).select(name=name)]
        if len(found) > 1:
            raise two_of_a_name(kind, name, *(each.package for each in found))
        return found[0] if found else None

    @property
    def package(self) -> str:
        """The distribution that it comes from: the name to uninstall or update."""
        return self.entry.dist.name if self.entry.dist is not None else self.entry.module.partition(".")[0]

    @property
    def is_own(self) -> bool:
        """Whether its code is part of this package."""
        return self.entry.module.partition(".")[0] == _OWN_PACKAGE

    @property
    def label(self) -> str:
        """What error messages call it."""
        return f"{self.kind} '{self.entry.name}'" + ("" if self.is_own else f" of the package {self.package}")

    def load(self) -> Any:
        """Import what the entry point names.

        Raises:
            UserError: It cannot be imported.
        """
        with self.loading(AttributeError):
            return self.entry.load()

    @contextmanager
    def loading(self, *expected: type[Exception]) -> Iterator[None]:
        """Turn errors while loading it into one line: any error of another package, only those expected of this one.

        Raises:
            UserError: The block raised such an error.
        """
        try:
            yield
        except UserError as error:
            if self.is_own:
                raise
            raise UserError(f"{self.label}: {error.text}") from error
        except Exception as error:
            if self.is_own and not isinstance(error, (ImportError, *expected)):
                raise
            raise UserError(
                f"{self.label} cannot be loaded: {type(error).__name__}: {first_line(error)}: reinstall "
                f"{self.package} and what it needs"
            ) from error

    @contextmanager
    def running(self) -> Iterator[None]:
        """Turn any error of another package's code into one line that names it; errors of this package pass.

        Raises:
            UserError: The block raised an error.
        """
        try:
            yield
        except Exception as error:
            if self.is_own:
                raise
            if isinstance(error, UserError):
                raise UserError(f"{self.label}: {error.text}") from error
            raise UserError(
                f"{self.label} failed: {type(error).__name__}: {first_line(error)}: update {self.package}, or report "
                "it to its authors"
            ) from error


def two_of_a_name(kind: str, name: str, *packages: str) -> UserError:
    """Return the error of a name that several packages give to what they add."""
    return UserError(f"{' and '.join(sorted(packages))} each have a {kind} '{name}': uninstall one of them")
