"""The map of the network: what was changed, by kind of site (rows) and layer (columns)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from antidote_llm.report import numbers
from antidote_llm.report.data import SiteChange
from antidote_llm.report.scale import nice

MapName = Literal["share", "norm"]
_Key = TypeVar("_Key")

STEPS = 8
_COLOUR_ENDS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
# With more kinds than this, experts and the like are put together.
_MAX_KINDS = 40
# With more cells than this the map carries no tooltips.
_MAX_TOOLTIPS = 4000
_MAX_LAYER_LABELS = 8
# A norm that is larger by less than this has not grown: it was rounded.
_GREW_PERCENT = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed in one or more sites together; shares in percent."""

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
        """Norm of the update that is left, in percent; None where there was no update."""
        return 100 * self.norm_after / self.norm_before if self.norm_before else None

    @property
    def share_text(self) -> str:
        """The share as it is written."""
        return numbers.share(self.changed, self.entries)

    @property
    def kept_text(self) -> str:
        """The norm kept as it is written."""
        return "\N{EM DASH}" if self.kept is None else numbers.decimal(self.kept)


@dataclass(frozen=True, slots=True)
class Cell:
    """One square of a map: its column, its step of the colour scale (CSS class), its tooltip."""

    column: int
    step: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class KindRow:
    """One row of a map; ``number`` is the value over all of its layers, ``range`` how it differs between them."""

    kind: str
    cells: tuple[Cell, ...]
    number: str
    range: str


@dataclass(frozen=True, slots=True)
class Column:
    """All kinds of one layer: the column's place and the height of its bar, in percent of the highest."""

    column: int
    height: float


@dataclass(frozen=True, slots=True)
class Map:
    """A map with its legend: the values at which the colour scale starts, is halfway, and ends, in percent."""

    name: MapName
    rows: tuple[KindRow, ...]
    columns: tuple[Column, ...]
    total: str
    legend: tuple[str, str, str]
    grew: bool


@dataclass(frozen=True, slots=True)
class Network:
    """Everything that the section on the network shows; ``labels`` are (place in percent, layer) of the axis."""

    total: Change
    layers: tuple[int, ...]
    labels: tuple[tuple[float, int], ...]
    maps: tuple[Map, ...]
    by_layer: tuple[tuple[int, Change], ...]
    outside: tuple[tuple[str, Change], ...]


def network(sites: Sequence[SiteChange]) -> Network:
    """Lay out the maps of one or more sites."""
    kind_of = _kind_names({site.kind for site in sites})
    inside = [site for site in sites if site.layer is not None]
    layers = tuple(sorted({site.layer for site in inside if site.layer is not None}))
    by_kind = _together(inside, lambda site: kind_of[site.kind])
    by_layer = _together(inside, lambda site: site.layer or 0)
    cells = _together(inside, lambda site: (kind_of[site.kind], site.layer or 0))
    outside = _together([site for site in sites if site.layer is None], lambda site: site.module)
    return Network(
        total=_sum(sites),
        layers=layers,
        labels=_layer_labels(layers),
        maps=tuple(_map(name, layers, cells, by_kind, by_layer) for name in _map_names(by_kind.values())),
        by_layer=tuple((layer, by_layer[layer]) for layer in layers),
        outside=tuple(outside.items()),
    )


def _map_names(changes: Iterable[Change]) -> tuple[MapName, ...]:
    found = list(changes)
    if not found:
        return ()
    return ("share", "norm") if any(change.kept is not None for change in found) else ("share",)


def _map(
    name: MapName,
    layers: Sequence[int],
    cells: Mapping[tuple[str, int], Change],
    by_kind: Mapping[str, Change],
    by_layer: Mapping[int, Change],
) -> Map:
    value, text = (_share, _share_text) if name == "share" else (_taken, _kept_text)
    found = [value(change) for change in (*cells.values(), *by_layer.values())]
    top = nice(max([0.0, *(number for number in found if number is not None)]) or 1, _COLOUR_ENDS)
    tooltips = len(cells) <= _MAX_TOOLTIPS
    rows = []
    for kind, total in by_kind.items():
        changes = [(column, layer, cells.get((kind, layer))) for column, layer in enumerate(layers)]
        shown = [
            Cell(column, _step(value(change), top), f"layer {layer} {kind}: {text(change)} %" if tooltips else "")
            for column, layer, change in changes
            if change is not None
        ]
        rows.append(KindRow(kind, tuple(shown), text(total), _range([c for _, _, c in changes if c], value, text)))
    heights = [max(0.0, value(by_layer[layer]) or 0) for layer in layers]
    highest = max(heights) or 1
    columns = [Column(column, round(100 * height / highest, 1)) for column, height in enumerate(heights)]
    halfway, end = (top / 2, top) if name == "share" else (100 - top / 2, 100 - top)
    return Map(
        name=name,
        rows=tuple(rows),
        columns=tuple(columns),
        total=text(_add(by_kind.values())),
        legend=("0" if name == "share" else "100", f"{halfway:g}", f"{end:g}"),
        grew=any(number is not None and number < -_GREW_PERCENT for number in found),
    )


def _step(value: float | None, top: float) -> str:
    """Return the CSS class of a value: n nothing to measure, g grew, 0 unchanged, 1 to 8 up to the top."""
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
    """Put changes together; the norm of a whole is the root of the sum of the squares of its parts."""
    found = list(changes)
    return Change(
        sites=sum(change.sites for change in found),
        entries=sum(change.entries for change in found),
        changed=sum(change.changed for change in found),
        norm_before=math.hypot(*(change.norm_before for change in found)),
        norm_after=math.hypot(*(change.norm_after for change in found)),
    )


def _kind_names(kinds: Iterable[str]) -> dict[str, str]:
    found = list(kinds)
    if len(found) <= _MAX_KINDS:
        return {kind: kind for kind in found}
    return {kind: re.sub(r"(?<![A-Za-z_])\d+", "*", kind) for kind in found}


def _layer_labels(layers: Sequence[int]) -> tuple[tuple[float, int], ...]:
    """Return so few of the layers' numbers that they fit below the narrowest map."""
    step = max(1, math.ceil(nice(len(layers) / _MAX_LAYER_LABELS))) if layers else 1
    return tuple(
        (round(100 * (column + 0.5) / len(layers), 2), layer)
        for column, layer in enumerate(layers)
        if column % step == 0
    )
