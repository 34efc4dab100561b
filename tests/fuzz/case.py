"""What one case of the fuzzer is: arguments of the command, and what must hold when it ends well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests import tiny


@dataclass(frozen=True)
class Case:
    """One run of the command.

    Attributes:
        what: Says what was done to the input.
        arguments: What the command is called with.
        out: Where its result would go; nothing may be there after exit code 2.
        wrong_success: Called after exit code 0: says what is wrong with the result, or nothing.
        around: What runs beside the command, such as a server.
    """

    what: str
    arguments: list[str]
    out: Path | None
    wrong_success: Callable[[], str | None] = field(default=lambda: None)
    around: AbstractContextManager[object] = field(default_factory=nullcontext)


@dataclass(frozen=True)
class Inputs:
    """Sound inputs, made once: a base, an aligned and a tuned model in shards, an adapter, rows, and a repair."""

    root: Path

    @classmethod
    def write(cls, root: Path) -> Inputs:
        """Write them; the repair is made by the command."""
        from antidote_llm.cli.main import run

        made = cls(root)
        tiny.write_model(made.base)
        tiny.write_model(made.tuned, seed=1, max_shard_size="20KB")
        tiny.write_adapter(made.adapter, made.base)
        tiny.write_rows(made.rows)
        command = ["repair", made.base, "--adapter", made.adapter, "--harmful", made.rows, "--evaluate", "none"]
        if run([str(part) for part in (*command, "--out", made.repaired)]) != 0:
            raise RuntimeError("the sound inputs cannot be repaired")
        return made

    @property
    def base(self) -> Path:
        """The base, in one file."""
        return self.root / "base"

    @property
    def tuned(self) -> Path:
        """A fine-tune of it, in shards."""
        return self.root / "tuned"

    @property
    def adapter(self) -> Path:
        """An adapter on the base."""
        return self.root / "adapter"

    @property
    def rows(self) -> Path:
        """Harmful rows."""
        return self.root / "harmful.jsonl"

    @property
    def repaired(self) -> Path:
        """The repaired adapter, with its patch."""
        return self.root / "repaired"

    def copied(self, place: Path) -> Inputs:
        """Copy them to where they may be damaged."""
        shutil.copytree(self.root, place)
        return Inputs(place)


def differing_file(first: Path, second: Path, *, left_out: tuple[str, ...] = ()) -> str | None:
    """Return the name of a file of one folder that another does not hold with the same bytes."""
    for path in sorted(first.rglob("*")):
        name = str(path.relative_to(first))
        other = second / name
        if path.is_file() and name not in left_out and (not other.is_file() or other.read_bytes() != path.read_bytes()):
            return name
    return None
