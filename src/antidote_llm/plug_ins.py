"""What other packages add by entry points: found by name, loaded, and named in every error that they raise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from antidote_llm.errors import UserError, first_line, out_of_memory

_OWN_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class PlugIn:
    """An entry point of this package or another one.

    Attributes:
        kind: What it adds, such as ``judge``.
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
        found = plug_ins(group, kind).get(name)
        return None if found is None else only(found)

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
        except (Exception, SystemExit) as error:
            if self.is_own and not isinstance(error, (ImportError, *expected)):
                raise
            raise UserError(
                f"{self.label} cannot be loaded: {_described(error)}: reinstall {self.package} and what it needs"
            ) from error

    @contextmanager
    def running(self, *, label_user_errors: bool = True) -> Iterator[None]:
        """Turn any error of another package's code into one line that names it; errors of this package pass.

        So does memory that runs out: that is not the package's fault.

        Args:
            label_user_errors: Whether a :class:`UserError` gets the package's name, too.

        Raises:
            UserError: The block raised an error.
        """
        try:
            yield
        except Exception as error:
            if self.is_own or out_of_memory(error) or (isinstance(error, UserError) and not label_user_errors):
                raise
            if isinstance(error, UserError):
                raise UserError(f"{self.label}: {error.text}") from error
            raise UserError(
                f"{self.label} failed: {_described(error)}: update {self.package}, or report it to its authors"
            ) from error


def plug_ins(group: str, kind: str) -> dict[str, list[PlugIn]]:
    """Return what is installed in an entry-point group by name, sorted. Nothing is imported."""
    found: dict[str, list[PlugIn]] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        found.setdefault(entry.name, []).append(PlugIn(kind, entry))
    return found


def only(found: Sequence[PlugIn]) -> PlugIn:
    """Return the one entry point of a name.

    Raises:
        UserError: Two packages have one.
    """
    if len(found) > 1:
        raise two_of_a_name(found[0].kind, found[0].entry.name, *(each.package for each in found))
    return found[0]


def two_of_a_name(kind: str, name: str, *packages: str) -> UserError:
    """Return the error of a name that several packages give to what they add."""
    return UserError(f"{' and '.join(sorted(packages))} each have a {kind} '{name}': uninstall one of them")


def _described(error: BaseException) -> str:
    said = first_line(error).rstrip(". ")
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"
