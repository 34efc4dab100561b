"""Computes the new values of every site from a method and its settings, one site at a time; nothing is written.

Legend: O rows and I columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import BaseModel
from scipy.optimize import brentq
from torch import Tensor

from antidote_llm.calibration.moments import Moments
from antidote_llm.errors import DefectError, UserError, setting
from antidote_llm.models.sites import Site
from antidote_llm.models.target import Target
from antidote_llm.repairs.method import (
    MatchedKnob,
    RepairMethod,
    ScoreSettings,
    SelectionSettings,
    SiteInputs,
    settings_as,
)
from antidote_llm.repairs.methods.antidote import antidote
from antidote_llm.repairs.selection import Request, Selection, select_many
from antidote_llm.repairs.update_norm import UpdateNorms, total_norm

# A block and what is computed from it fit in the processor's cache.
_BLOCK_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Problem:
    """What a repair starts from.

    Attributes:
        target: What is edited.
        moments: The statistics of the harmful data, where they were collected.
    """

    target: Target
    moments: Moments | None

    def inputs(self, site: Site, weight_OI: Tensor, reference_OI: Tensor | None) -> SiteInputs:
        """Return what a method may know of a site, or of some of its rows, from the values in its file."""
        # The scores of a checkpoint that mixes types are compared in the widest.
        wide = torch.float64 if "F64" in self.target.dtypes else torch.float32
        reference_OI = None if reference_OI is None else reference_OI.to(wide)
        return SiteInputs(site, weight_OI.to(wide), reference_OI, self.moments)

    def blocks(self, site: Site, method: RepairMethod) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield a site's values and what removed entries go back to, in the file's type, some rows at a time.

        A method that must know the whole matrix gets it as one block, and so do all if the file holds it transposed.
        """
        rows, columns = site.shape
        step = max(1, _BLOCK_ENTRIES // max(columns, 1)) if method.by_rows and not site.transposed else max(rows, 1)
        for start in range(0, rows, step):
            block = (start, min(start + step, rows))
            yield self.target.weight(site, block), self.target.reference(site, block)

    def scores(self, site: Site, method: RepairMethod, settings: BaseModel) -> Iterator[Tensor]:
        """Yield a site's scores, or a solve method's new matrix, some rows at a time."""
        for weight_OI, reference_OI in self.blocks(site, method):
            yield method.run(settings, self.inputs(site, weight_OI, reference_OI))


@dataclass(frozen=True)
class Edit:
    """The change of one site, or of a block of its rows.

    Attributes:
        before_OI: Its values, in the file's type.
        after_OI: Its new values, in the file's type.
        reference_OI: What removed entries go back to, in the file's type; None for zero.
        chosen_OI: The mask of chosen entries; None for methods that do not choose.
    """

    before_OI: Tensor
    after_OI: Tensor
    reference_OI: Tensor | None
    chosen_OI: Tensor | None


@dataclass(frozen=True)
class Plan:
    """What a repair does.

    Attributes:
        problem: What it starts from.
        method: The method.
        settings: The settings, solved-for values filled in.
        selection: Which entries are chosen; None for methods that do not choose.
    """

    problem: Problem
    method: RepairMethod
    settings: BaseModel
    selection: Selection | None

    def edits(self, site: Site) -> Iterator[Edit]:
        """Compute the new values of consecutive blocks of a site's rows, holding one block at a time."""
        return (edit for (edit,) in edits_of(site, [self]))

    def edit(self, site: Site) -> Edit:
        """Compute the new values of a whole site."""
        blocks = list(self.edits(site))
        if len(blocks) == 1:
            return blocks[0]
        return Edit(
            before_OI=torch.cat([block.before_OI for block in blocks]),
            after_OI=torch.cat([block.after_OI for block in blocks]),
            reference_OI=_together([block.reference_OI for block in blocks]),
            chosen_OI=_together([block.chosen_OI for block in blocks]),
        )


@torch.no_grad()
def edits_of(site: Site, plans: Sequence[Plan]) -> Iterator[tuple[Edit, ...]]:
    """Yield what each of several plans does to a block of a site's rows, then to the next block, and so on.

    Each block is read and scored once for all plans.

    Raises:
        DefectError: The plans are of different problems, methods, or settings of a method's own.
    """
    problem, method = plans[0].problem, plans[0].method
    _require_shared_arguments(method, [plan.settings for plan in plans])
    if any(plan.problem is not problem or plan.method is not method for plan in plans):
        raise DefectError("plans are carried out together that start from different things")
    masks = [None if plan.selection is None else plan.selection.mask_by_rows(site) for plan in plans]
    for before_OI, reference_OI in problem.blocks(site, method):
        found_OI = method.run(plans[0].settings, problem.inputs(site, before_OI, reference_OI))
        edits = []
        for plan, mask in zip(plans, masks, strict=True):
            if mask is None:
                edits.append(Edit(before_OI, found_OI.to(before_OI.dtype), reference_OI, None))
                continue
            chosen_OI = mask.next_rows(found_OI)
            strength = settings_as(ScoreSettings, plan.settings).strength
            edits.append(Edit(before_OI, moved(before_OI, reference_OI, chosen_OI, strength), reference_OI, chosen_OI))
        yield tuple(edits)


def _require_shared_arguments(method: RepairMethod, settings: Sequence[BaseModel]) -> None:
    arguments = method.arguments(settings[0])
    if any(method.arguments(each) != arguments for each in settings):
        raise DefectError(f"{method.name} is planned together with different settings of its own")


def _together(blocks: Sequence[Tensor | None]) -> Tensor | None:
    present = [block for block in blocks if block is not None]
    return torch.cat(present) if present else None


def moved(weight_OI: Tensor, reference_OI: Tensor | None, chosen_OI: Tensor, strength: float) -> Tensor:
    """Move the chosen entries towards the reference, or zero; all other entries keep their bits."""
    if strength == 1:
        return (
            weight_OI.masked_fill(chosen_OI, 0) if reference_OI is None else weight_OI.where(~chosen_OI, reference_OI)
        )
    if reference_OI is None:
        return torch.where(chosen_OI, weight_OI * (1 - strength), weight_OI)
    wide_OI = weight_OI if weight_OI.dtype == torch.float64 else weight_OI.float()
    return weight_OI.where(~chosen_OI, (wide_OI + strength * (reference_OI - wide_OI)).to(weight_OI.dtype))


@torch.no_grad()
def plan(problem: Problem, method: RepairMethod, settings: BaseModel) -> Plan:
    """Find what a repair does to every site: settings solved for, and thresholds where matrices are ranked whole."""
    if method.matched is not None and method.matched.wanted(settings):
        settings = _match(problem, method, method.matched, settings)
    return plans(problem, method, [settings])[0]


@torch.no_grad()
def plans(problem: Problem, method: RepairMethod, settings: Sequence[BaseModel]) -> list[Plan]:
    """Plan a repair at several alphas, roundings and strengths, reading and scoring each site as often as for one.

    Raises:
        DefectError: The settings differ in their scope, or in those of the method's own.
    """
    _require_shared_arguments(method, settings)
    if method.kind == "solve":
        return [Plan(problem, method, each, None) for each in settings]
    selections = select_many(
        problem.target.sites,
        partial(problem.scores, method=method, settings=settings[0]),
        [request_of(each) for each in settings],
    )
    return [Plan(problem, method, *both) for both in zip(settings, selections, strict=True)]


def request_of(settings: BaseModel) -> Request:
    """Return what the settings of a score method ask to be selected."""
    given = settings_as(ScoreSettings, settings)
    return Request(given.alpha, given.scope, given.rounding, given.without_evidence)


def planned_norm(found: Plan) -> float:
    """Return the Frobenius norm of the whole update after a repair."""
    norms = UpdateNorms()
    for site in found.problem.target.sites:
        for edit in found.edits(site):
            norms.add(site, edit.after_OI, edit.reference_OI)
    return total_norm(norms.norms())


def _match(problem: Problem, method: RepairMethod, knob: MatchedKnob, settings: BaseModel) -> BaseModel:
    """Solve for the setting that leaves Antidote's update norm at the same alpha, scope and rounding.

    A count is an integer and cannot match exactly; the record holds the norm that was reached. If Antidote does not
    make the norm smaller, because what it removed had cancelled something, nothing is changed.
    """
    given = settings_as(SelectionSettings, settings)
    same = antidote.configure({"alpha": given.alpha, "scope": given.scope, "rounding": given.rounding})
    wanted = planned_norm(plans(problem, antidote, [same])[0])

    def solved(value: float) -> BaseModel:
        return method.settings.model_validate({**settings.model_dump(), knob.name: value})

    def excess(value: float) -> float:
        return planned_norm(plans(problem, method, [solved(value)])[0]) - wanted

    if excess(knob.unchanged) <= 1e-12 * wanted:
        return solved(knob.unchanged)
    if wanted == 0:
        return solved(knob.removed)
    if excess(knob.removed) > 0:
        raise UserError(
            f"{setting('method')} {method.name}: with these settings it cannot shrink the update as far as Antidote "
            f"does at the same {setting('alpha')}: raise {setting('strength')}, or lower {setting('alpha')}"
        )
    return solved(float(brentq(excess, knob.unchanged, knob.removed, xtol=1e-4)))
