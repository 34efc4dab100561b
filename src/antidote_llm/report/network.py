"""The map of the network: how much was changed, by kind of site (rows) and layer (columns)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from antidote_llm.report import formatting as numbers
from antidote_llm.report.data import SiteChange
from antidote_llm.report.formatting import clip_name, nice

MapName = Literal["share", "norm"]
_Key = TypeVar("_Key")

STEPS = 8
_COLOUR_ENDS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
# With more kinds than this, numbered ones such as experts are combined.
_MAX_KINDS = 40
_OTHER_KINDS = "other kinds"
# With more layers than this, a column combines several, so that it is at least a pixel wide on a phone.
_MAX_COLUMNS = 160
# With more cells than this, the map has no tooltips.
_MAX_TOOLTIPS = 2000
_MAX_NAME = 32
_MAX_LAYER_LABELS = 8
# A smaller growth of a norm is rounding error.
_GREW_PERCENT = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """How much of one or more sites was changed; shares in percent."""

    sites: int
    entries: int
    changed: int
    norm_before: float
    norm_after: float

    @property
    def share(self) -> float:
        """Share of the entries that were changed, in percent."""
        return 100 * self.changed / self.entries if self.entries else 0.0

    @property
    def kept(self) -> float | None:
        """Remaining norm of the update, in percent; None where there was no update."""
        return 100 * self.norm_after / self.norm_before if self.norm_before else None

    @property
    def share_text(self) -> str:
        """The share as text."""
        return numbers.share(self.changed, self.entries)

    @property
    def kept_text(self) -> str:
        """The norm kept as text."""
        return "\N{EM DASH}" if self.kept is None else numbers.decimal(self.kept)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a map: its column, its step on the colour scale (a CSS class), and its tooltip."""

    column: int
    step: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class KindRow:
    """One row of a map.

    Attributes:
        kind: The kind of site, shortened where it is long.
        modules: The most modules of this kind in one layer, such as its experts.
        cells: One cell for each column.
        number: The value over all layers.
        range: The range of values over the layers.
    """

    kind: str
    modules: int
    cells: tuple[Cell, ...]
    number: str
    range: str


@dataclass(frozen=True, slots=True)
class Column:
    """One column over all kinds: its index, and the height of its bar in percent of the highest."""

    column: int
    height: float


@dataclass(frozen=True, slots=True)
class Map:
    """A map with its legend: the start, middle and end of the colour scale, in percent."""

    name: MapName
    rows: tuple[KindRow, ...]
    columns: tuple[Column, ...]
    total: str
    legend: tuple[str, str, str]
    grew: bool


@dataclass(frozen=True, slots=True)
class Network:
    """Everything that the section on the network shows.

    Attributes:
        total: All sites together.
        columns: The layers of each column, such as ``3`` or ``6-7``.
        layers_a_column: How many layers a column combines.
        labels: Position in percent and layer on the axis.
        maps: The maps.
        by_column: The same numbers as a table.
        outside: Modules outside the layers.
    """

    total: Change
    columns: tuple[str, ...]
    layers_a_column: int
    labels: tuple[tuple[float, int], ...]
    maps: tuple[Map, ...]
    by_column: tuple[tuple[str, Change], ...]
    outside: tuple[tuple[str, Change], ...]


def network(sites: Sequence[SiteChange]) -> Network:
    """Return the maps of one or more sites."""
    inside = [site for site in sites if site.layer is not None]
    kind_of = _kind_names(site.kind for site in inside)
    layers = sorted({site.layer for site in inside if site.layer is not None})
    width = math.ceil(len(layers) / _MAX_COLUMNS) or 1
    column_of = {layer: place // width for place, layer in enumerate(layers)}
    columns = tuple(_column_name(layers[start : start + width]) for start in range(0, len(layers), width))
    by_kind = _together(inside, lambda site: kind_of[site.kind])
    by_column = _together(inside, lambda site: column_of[site.layer or 0])
    cells = _together(inside, lambda site: (kind_of[site.kind], column_of[site.layer or 0]))
    a_layer = Counter((kind_of[site.kind], site.layer) for site in inside)
    modules = {kind: max(count for (of, _), count in a_layer.items() if of == kind) for kind in by_kind}
    outside = _together([site for site in sites if site.layer is None], lambda site: site.module)
    return Network(
        total=_sum(sites),
        columns=columns,
        layers_a_column=width,
        labels=_layer_labels(layers[::width]),
        maps=tuple(_map(name, columns, cells, by_kind, by_column, modules) for name in _map_names(by_kind.values())),
        by_column=tuple((layers, by_column[column]) for column, layers in enumerate(columns)),
        outside=tuple((clip_name(module), change) for module, change in outside.items()),
    )


def _map_names(changes: Iterable[Change]) -> tuple[MapName, ...]:
    found = list(changes)
    if not found:
        return ()
    return ("share", "norm") if any(change.kept is not None for change in found) else ("share",)


def _map(
    name: MapName,
    columns: Sequence[str],
    cells: Mapping[tuple[str, int], Change],
    by_kind: Mapping[str, Change],
    by_column: Mapping[int, Change],
    modules: Mapping[str, int],
) -> Map:
    value, text = (_share, _share_text) if name == "share" else (_taken, _kept_text)
    found = [value(change) for change in (*cells.values(), *by_column.values())]
    top = nice(max([0.0, *(number for number in found if number is not None)]) or 1, _COLOUR_ENDS)
    tooltips = len(cells) <= _MAX_TOOLTIPS
    rows = []
    for kind, total in by_kind.items():
        found_here = [(column, cells[kind, column]) for column in range(len(columns)) if (kind, column) in cells]
        shown = [
            Cell(column, _step(value(change), top), _tooltip(columns[column], kind, text(change)) if tooltips else "")
            for column, change in found_here
        ]
        changes = [change for _, change in found_here]
        range_ = _range(changes, value, text)
        rows.append(KindRow(clip_name(kind, _MAX_NAME), modules[kind], tuple(shown), text(total), range_))
    heights = [max(0.0, value(by_column[column]) or 0) for column in range(len(columns))]
    highest = max(heights) or 1
    halfway, end = (top / 2, top) if name == "share" else (100 - top / 2, 100 - top)
    return Map(
        name=name,
        rows=tuple(rows),
        columns=tuple(Column(column, round(100 * height / highest, 1)) for column, height in enumerate(heights)),
        total=text(_add(by_kind.values())),
        legend=("0" if name == "share" else "100", f"{halfway:g}", f"{end:g}"),
        grew=any(number is not None and number < -_GREW_PERCENT for number in found),
    )


def _tooltip(layers: str, kind: str, text: str) -> str:
    return f"layer {layers} {clip_name(kind, _MAX_NAME)}: {text} %"


def _column_name(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}\N{EN DASH}{layers[-1]}"


def _step(value: float | None, top: float) -> str:
    """Return the CSS class of a value: ``n`` no value, ``g`` grew, ``s0`` unchanged, ``s1`` to ``s8`` up to the top."""
    if value is None:
        return "n"
    if value < -_GREW_PERCENT:
        return "g"
    if value <= 0:
        return "s0"
    return f"s{min(STEPS, 1 + int(STEPS * value / top))}"


def _share(change: Change) -> float | None:
    return change.share if change.entries else None


def _taken(change: Change) -> float | None:
    return None if change.kept is None else 100 - change.kept


def _share_text(change: Change) -> str:
    return change.share_text


def _kept_text(change: Change) -> str:
    return change.kept_text


def _range(changes: Sequence[Change], value: Callable[[Change], float | None], text: Callable[[Change], str]) -> str:
    ordered = sorted((change for change in changes if value(change) is not None), key=lambda c: value(c) or 0)
    if not ordered:
        return "nothing to measure"
    low, high = text(ordered[0]), text(ordered[-1])
    return f"{low} % in every layer" if low == high else f"{low} % to {high} % by layer"


def _together(sites: Iterable[SiteChange], key: Callable[[SiteChange], _Key]) -> dict[_Key, Change]:
    groups: dict[_Key, list[SiteChange]] = {}
    for site in sites:
        groups.setdefault(key(site), []).append(site)
    return {name: _sum(group) for name, group in groups.items()}


def _sum(sites: Iterable[SiteChange]) -> Change:
    return _add(Change(1, site.entries, site.changed, site.norm_before, site.norm_after) for site in sites)


def _add(changes: Iterable[Change]) -> Change:
    """Add changes up; the norm of the whole is the root of the sum of squares of its parts."""
    found = list(changes)
    return Change(
        sites=sum(change.sites for change in found),
        entries=sum(change.entries for change in found),
        changed=sum(change.changed for change in found),
        norm_before=math.hypot(*(change.norm_before for change in found)),
        norm_after=math.hypot(*(change.norm_after for change in found)),
    )


def _kind_names(kinds: Iterable[str]) -> dict[str, str]:
    """Return each kind's row: kinds that differ only in a number share one, and rare kinds share the last."""
    counts = Counter(kinds)
    shown = {kind: kind for kind in counts}
    if len(shown) > _MAX_KINDS:
        shown = {kind: re.sub(r"(?<![A-Za-z_\d])\d+", "*", kind) for kind in counts}
    rows: Counter[str] = Counter()
    for kind, row in shown.items():
        rows[row] += counts[kind]
    kept = {row for row, _ in rows.most_common(_MAX_KINDS - 1)} if len(rows) > _MAX_KINDS else set(rows)
    return {kind: row if row in kept else _OTHER_KINDS for kind, row in shown.items()}


def _layer_labels(layers: Sequence[int]) -> tuple[tuple[float, int], ...]:
    """Return a selection of layer numbers that fits below the narrowest map."""
    step = max(1, math.ceil(nice(len(layers) / _MAX_LAYER_LABELS))) if layers else 1
    return tuple(
        (round(100 * (column + 0.5) / len(layers), 2), layer)
        for column, layer in enumerate(layers)
        if column % step == 0
    )
