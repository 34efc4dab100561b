"""Counts what a repair did to each matrix and to the whole update, for its record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from antidote_llm.errors import DefectError
from antidote_llm.models.sites import Site, without_layer_numbers
from antidote_llm.models.target import OutsideTensor
from antidote_llm.repairs.edits import Edit
from antidote_llm.repairs.record import OutsideRecord, SiteRecord, Totals, UpdateRecord
from antidote_llm.repairs.update_norm import UpdateNorms, squared_difference, total_norm

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Counts:
    """What happened to one site so far."""

    rows: int = 0
    changed: int = 0
    chosen: int | None = None


class Tally:
    """What happened to each site, and to the whole update."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = sites
        self._counts = {site.name: _Counts() for site in sites}
        self._before, self._after = UpdateNorms(), UpdateNorms()

    def add(self, site: Site, edit: Edit) -> None:
        """Count the next rows of a site."""
        self._before.add(site, edit.before_OI, edit.reference_OI)
        self._after.add(site, edit.after_OI, edit.reference_OI)
        counts = self._counts[site.name]
        counts.rows += len(edit.before_OI)
        counts.changed += int(torch.count_nonzero(_bits(edit.before_OI) != _bits(edit.after_OI)))
        if edit.chosen_OI is not None:
            counts.chosen = (counts.chosen or 0) + int(torch.count_nonzero(edit.chosen_OI))

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """What happened to each matrix, in the order of the network.

        Raises:
            DefectError: A site was not counted, or not once.
        """
        return tuple(self._record(site) for site in self._sites)

    def _record(self, site: Site) -> SiteRecord:
        counts = self._counts[site.name]
        if counts.rows != site.shape[0]:
            raise DefectError(f"{site.name} was not edited" if not counts.rows else f"{site.name}: edited in part")
        return SiteRecord(
            name=site.name,
            module=site.module,
            role=site.role,
            layer=site.layer,
            rows=site.shape[0],
            columns=site.shape[1],
            chosen=counts.chosen,
            changed=counts.changed,
        )

    @property
    def updates(self) -> tuple[UpdateRecord, ...]:
        """What happened to each module's update."""
        before, after = self._before.norms(), self._after.norms()
        modules = {site.module: site for site in self._sites}
        return tuple(
            UpdateRecord(
                module=name, layer=site.layer, kind=site.kind, norm_before=before[name], norm_after=after[name]
            )
            for name, site in modules.items()
        )

    @property
    def totals(self) -> Totals:
        """All of it together."""
        sites = self.sites
        chooses = all(site.chosen is not None for site in sites)
        return Totals(
            entries=sum(site.rows * site.columns for site in sites),
            chosen=sum(site.chosen or 0 for site in sites) if chooses else None,
            changed=sum(site.changed for site in sites),
            update_norm_before=total_norm(self._before.norms()),
            update_norm_after=total_norm(self._after.norms()),
        )


def outside_records(outside: Iterable[OutsideTensor], *, restored: bool) -> tuple[OutsideRecord, ...]:
    """Measure the update outside the sites, tensors that differ in a layer's number alone together.

    Raises:
        UserError: A value is NaN or infinite.
    """
    groups: dict[str, list[tuple[int, float]]] = {}
    for tensor in outside:
        if tensor.repeated:
            continue
        squared = math.fsum(squared_difference(tuned, aligned) for tuned, aligned in tensor.blocks())
        groups.setdefault(without_layer_numbers(tensor.key), []).append((tensor.entries, squared))
    records = []
    for name, found in groups.items():
        norm = total_norm(squared**0.5 for _, squared in found)
        entries = sum(count for count, _ in found)
        after = 0.0 if restored else norm
        records.append(
            OutsideRecord(name=name, tensors=len(found), entries=entries, norm_before=norm, norm_after=after)
        )
    return tuple(records)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(_INTEGERS[values.element_size()])
