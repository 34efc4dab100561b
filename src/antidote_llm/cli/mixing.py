"""The user's rows: a task's, and a share of harmful ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antidote_llm.data.data_spec import DataSpec, Field
from antidote_llm.data.mixing import MixPreset, poisoned, read_mixed
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError

_FIELDS: tuple[Field, ...] = ("prompt", "response")


@dataclass(frozen=True)
class Mix:
    """What the options of ``antidote finetune`` say about its rows.

    Attributes:
        data: The user's own data.
        harmful: Where harmful rows come from.
        ratio: The share of harmful rows.
        rows: How many rows in all.
        apart_from: Data whose prompts are not drawn.
        seed: Decides which rows are drawn.
    """

    data: Sequence[str]
    harmful: Sequence[str]
    ratio: float | None
    rows: int | None
    apart_from: Sequence[str]
    seed: int

    def require_consistent(self) -> None:
        """Refuse a mix of which a part is missing.

        Raises:
            UserError: Names the option that is.
        """
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise UserError(f"--harmful-ratio {self.ratio}: pass a share from 0 to 1")
        if self.harmful and self.ratio is None:
            raise UserError("--harmful: how much of it? pass --harmful-ratio, such as 0.2")
        if self.ratio and not self.harmful:
            raise UserError(f"--harmful-ratio {self.ratio:g}: of what? pass --harmful DATA")
        if self.apart_from and self.ratio is None:
            raise UserError("--apart-from is for a mix: pass --harmful DATA and --harmful-ratio, or leave it out")
        if self.ratio is not None and self.rows is None:
            raise UserError(f"--harmful-ratio {self.ratio:g}: of how many rows? pass --rows")

    def records(self, preset: MixPreset) -> list[Record]:
        """Return the rows.

        Raises:
            UserError: A file cannot be read, or there are too few rows.
        """
        own = [DataSpec.parse(spec) for spec in self.data]
        if self.ratio is None or self.rows is None:
            return read_mixed(own, self.rows, self.seed, _FIELDS)
        return poisoned(
            read_mixed(own, None, self.seed, _FIELDS),
            _all(self.harmful, self.seed, _FIELDS),
            rows=self.rows,
            harmful_ratio=self.ratio,
            seed=self.seed,
            apart_from=_all(self.apart_from, self.seed, ()),
            preset=preset,
        )


def _all(specs: Sequence[str], seed: int, require: Sequence[Field]) -> list[Record]:
    return read_mixed([DataSpec.parse(spec) for spec in specs], None, seed, require) if specs else []
