"""What a repair method is: one typed function, whose keyword parameters are its settings.

A *score* method gives every entry of a matrix a score; the entries with the highest scores are then removed. A *solve*
method gives the new matrix itself. The command line, its help and the record are made from the function's signature and
docstring, and another package adds a method through the entry-point group ``antidote_llm.repair_methods``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, Field

from antidote_llm.choices import Rounding, Scope, Statistic
from antidote_llm.errors import DefectError, setting
from antidote_llm.registry import Method, MethodSettings, named, registered, settings_model

if TYPE_CHECKING:
    from torch import Tensor

    from antidote_llm.calibration.moments import Moments
    from antidote_llm.models.sites import Site

ENTRY_POINTS = "antidote_llm.repair_methods"


class SelectionSettings(MethodSettings):
    """How many entries Antidote removes: for score methods, and for those that match its update norm."""

    alpha: float = Field(0.2, ge=0, le=1, description="Fraction of the entries that is removed.")
    scope: Scope = Field(
        "row", description="What is ranked together: each row, each matrix, all of a decoder layer, or everything."
    )
    rounding: Rounding = Field(
        "nearest",
        description="How a fraction becomes a count: the nearest, or the published code's n - int(n (1 - alpha)).",
    )


class ScoreSettings(SelectionSettings):
    """The settings that all score methods share."""

    strength: float = Field(
        1.0, ge=0, le=1, description="How far a chosen entry goes to zero: 1 removes it, 0.5 halves it."
    )
    without_evidence: bool = Field(
        False, description="Whether entries of score 0, which no calibration token used, may be chosen."
    )


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def settings_as(kind: type[SettingsT], settings: BaseModel) -> SettingsT:
    """Return settings as what the kind of their method says that they are.

    Raises:
        DefectError: They are of another kind.
    """
    if not isinstance(settings, kind):
        raise DefectError(f"{type(settings).__name__} are no {kind.__name__}")
    return settings


@dataclass(frozen=True)
class SiteInputs:
    """All that a method knows of one site, or of a block of its rows if it asked for no more.

    Attributes:
        site: Which matrix it is; its shape is the whole matrix's.
        weight_OI: Its values in the file, as float32 (float64 where the file holds it).
        reference_OI: What its removed entries go back to; None for zero.
        moments: The statistics of the harmful data; None where the method asks for none.
    """

    site: Site
    weight_OI: Tensor
    reference_OI: Tensor | None
    moments: Moments | None

    @property
    def update_OI(self) -> Tensor:
        """How far each entry is from where a removed one goes."""
        return self.weight_OI if self.reference_OI is None else self.weight_OI - self.reference_OI

    @property
    def harmful(self) -> Moments:
        """The statistics of the harmful data.

        Raises:
            DefectError: The method did not say that it needs them.
        """
        if self.moments is None:
            raise DefectError("the method reads statistics that it did not ask for: declare needs_harmful")
        return self.moments


@dataclass(frozen=True)
class MatchedKnob:
    """A setting that is solved for, so that the repair leaves the same update norm as Antidote at the same alpha.

    Attributes:
        name: The setting.
        unchanged: Its value that changes nothing.
        removed: Its value that removes the whole update.
        wanted: Whether the settings ask for the match.
    """

    name: str
    unchanged: float
    removed: float
    wanted: Callable[[Any], bool]


@dataclass(frozen=True)
class ColumnScore:
    """A score that is |update| times a power of the norm of its input column.

    The mask of such a score can be watched while its statistics grow, which is what ``--calibration auto`` does.

    Attributes:
        statistic: How the norm is taken over rows.
        norm_power: The power of the norm.
    """

    statistic: Statistic
    norm_power: int = 1


@dataclass(frozen=True)
class RepairMethod(Method):
    """A registered repair method.

    Attributes:
        kind: ``score`` or ``solve``: whether the function, which takes :class:`SiteInputs`, returns scores, or the new
            matrix.
        needs_harmful: Whether it reads the statistics of the harmful data.
        matched: The setting that can be solved for at equal update norm, if any.
        by_rows: Whether it may be given some rows of a site at a time.
        column_score: Says from the settings which column score it is; None where it is none.
    """

    kind: Literal["score", "solve"]
    needs_harmful: bool
    matched: MatchedKnob | None = None
    by_rows: bool = False
    column_score: Callable[[Any], ColumnScore] | None = None


def score_method(
    *,
    needs_harmful: bool,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    matched: MatchedKnob | None = None,
    by_rows: bool = False,
    column_score: Callable[[Any], ColumnScore] | None = None,
) -> Callable[[Callable[..., Tensor]], RepairMethod]:
    """Register a function that scores every entry of a site, shape [rows, columns], higher meaning removed first.

    Args:
        needs_harmful: Whether it reads the statistics of the harmful data.
        presets: Settings by name.
        matched: The setting that can be solved for at equal update norm, if any.
        by_rows: Whether a row's scores depend on that row alone: large matrices then come in blocks of rows, and no
            more than a block is held in memory.
        column_score: For a score that is |update| times a power of its input column's norm: says from the settings
            which norm and power. ``--calibration auto`` needs it.
    """

    def decorate(function: Callable[..., Tensor]) -> RepairMethod:
        settings = settings_model(function, ScoreSettings)
        return RepairMethod(
            function.__name__,
            function,
            settings,
            "score",
            needs_harmful,
            matched,
            by_rows,
            column_score,
            presets=presets or {},
        )

    return decorate


def solve_method(
    *,
    needs_harmful: bool,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    matched: MatchedKnob | None = None,
) -> Callable[[Callable[..., Tensor]], RepairMethod]:
    """Register a function that returns a site's new matrix, shape [rows, columns].

    A method with a matched knob also takes the alpha, scope and rounding of the Antidote repair that it is matched to.
    """

    def decorate(function: Callable[..., Tensor]) -> RepairMethod:
        settings = settings_model(function, MethodSettings if matched is None else SelectionSettings)
        return RepairMethod(
            function.__name__, function, settings, "solve", needs_harmful, matched, presets=presets or {}
        )

    return decorate


def needs_harmful(method: RepairMethod, settings: BaseModel) -> bool:
    """Whether a repair needs the statistics of the harmful data: for its score, or to match Antidote's norm."""
    return method.needs_harmful or (method.matched is not None and method.matched.wanted(settings))


@cache
def methods() -> Mapping[str, RepairMethod]:
    """Return every registered repair method by name."""
    return registered(ENTRY_POINTS, RepairMethod, "repair method")


def method_named(name: str) -> RepairMethod:
    """Return a repair method.

    Raises:
        UserError: Lists the known methods, with the nearest one.
    """
    return named(methods(), name, setting("method"), "method")
