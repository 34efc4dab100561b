"""From a method and its settings to the new values of every site, one site at a time. Pure: nothing is written.

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
from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.sites import Site
from antidote_llm.models.target import Target
from antidote_llm.repairs.method import MatchedKnob, RepairMethod, SiteInputs
from antidote_llm.repairs.methods.antidote import antidote
from antidote_llm.repairs.selection import Request, Selection, select_many
from antidote_llm.repairs.update_norm import UpdateNorms, total_norm

# Of a block's values, so that they and what is computed from them stay in the processor's cache.
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
        """Return what a method may know of a site, or of some of its rows, whose values have been read."""
        # Ranked together, the scores of a checkpoint that mixes types are compared in the widest.
        wide = torch.float64 if "F64" in self.target.dtypes else torch.float32
        reference_OI = None if reference_OI is None else reference_OI.to(wide)
        return SiteInputs(site, weight_OI.to(wide), reference_OI, self.moments)

    def blocks(self, site: Site, method: RepairMethod) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield a site's values and what removed entries go back to, as the files hold them, some rows at a time.

        A method that must know the whole matrix gets it as one block, and so do all where the file holds it turned.
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
    """What becomes of one site, or of a block of its rows.

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
        return (edit for _, edit in edits_of(site, [self]))

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
def edits_of(site: Site, plans: Sequence[Plan]) -> Iterator[tuple[Plan, Edit]]:
    """Yield what each of several plans does to a block of a site's rows, then to the next block, and so on.

    A block is read once for all of them, and scored once for all that share scores.

    Raises:
        DefectError: The plans are of different problems or methods.
    """
    problem, method = plans[0].problem, plans[0].method
    if any(plan.problem is not problem or plan.method is not method for plan in plans):
        raise DefectError("plans are carried out together that start from different things")
    pickers = [None if plan.selection is None else plan.selection.picker(site) for plan in plans]
    for before_OI, reference_OI in problem.blocks(site, method):
        inputs = problem.inputs(site, before_OI, reference_OI)
        found: dict[str, Tensor] = {}
        for plan, picker in zip(plans, pickers, strict=True):
            alike = repr(method.arguments(plan.settings))
            if alike not in found:
                found[alike] = method.run(plan.settings, inputs)
            found_OI = found[alike]
            if picker is None:
                yield plan, Edit(before_OI, found_OI.to(before_OI.dtype), reference_OI, None)
                continue
            chosen_OI = picker.mask(found_OI)
            after_OI = moved(before_OI, reference_OI, chosen_OI, plan.settings.model_dump()["strength"])
            yield plan, Edit(before_OI, after_OI, reference_OI, chosen_OI)


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


def needs_harmful(method: RepairMethod, settings: BaseModel) -> bool:
    """Whether a plan needs the statistics of the harmful data: for the method's score, or to match Antidote's norm."""
    return method.needs_harmful or (method.matched is not None and method.matched.wanted(settings))


@torch.no_grad()
def plan(problem: Problem, method: RepairMethod, settings: BaseModel) -> Plan:
    """Find what a repair does to every site: settings solved for, and thresholds where matrices are ranked whole."""
    return plans(problem, method, [settings])[0]


@torch.no_grad()
def plans(problem: Problem, method: RepairMethod, settings: Sequence[BaseModel]) -> list[Plan]:
    """Plan a repair with each of several settings, reading and scoring a site once a pass for all that share scores."""
    return _plans(problem, method, [_solved(problem, method, each) for each in settings])


def _plans(problem: Problem, method: RepairMethod, solved: Sequence[BaseModel]) -> list[Plan]:
    if method.kind == "solve":
        return [Plan(problem, method, each, None) for each in solved]
    alike: dict[str, list[int]] = {}
    for place, each in enumerate(solved):
        alike.setdefault(repr(method.arguments(each)), []).append(place)
    found: dict[int, Plan] = {}
    for places in alike.values():
        selections = select_many(
            problem.target.sites,
            partial(problem.scores, method=method, settings=solved[places[0]]),
            [request_of(solved[place]) for place in places],
        )
        for place, selection in zip(places, selections, strict=True):
            found[place] = Plan(problem, method, solved[place], selection)
    return [found[place] for place in range(len(solved))]


def request_of(settings: BaseModel) -> Request:
    """Return what the settings of a score method ask to be picked."""
    given = settings.model_dump()
    return Request(given["alpha"], given["scope"], given["rounding"], given["without_evidence"])


def planned_norm(found: Plan) -> float:
    """Return the Frobenius norm of the whole update after a repair."""
    norms = UpdateNorms()
    for site in found.problem.target.sites:
        for edit in found.edits(site):
            norms.add(site, edit.after_OI, edit.reference_OI)
    return total_norm(norms.norms())


def _solved(problem: Problem, method: RepairMethod, settings: BaseModel) -> BaseModel:
    if method.matched is None or not method.matched.wanted(settings):
        return settings
    return _match(problem, method, method.matched, settings)


def _match(problem: Problem, method: RepairMethod, knob: MatchedKnob, settings: BaseModel) -> BaseModel:
    """Solve for the setting that leaves Antidote's update norm at the same alpha, scope and rounding.

    A count moves in steps and cannot follow exactly; the norm that came of it is in the record. Where Antidote makes
    the norm no smaller, because what it removed had cancelled something, nothing is changed.
    """
    given = settings.model_dump()
    same = antidote.configure({name: given[name] for name in ("alpha", "scope", "rounding")})
    wanted = planned_norm(_plans(problem, antidote, [same])[0])

    def excess(value: float) -> float:
        trial = method.settings.model_validate({**given, knob.name: value})
        return planned_norm(_plans(problem, method, [trial])[0]) - wanted

    if excess(knob.unchanged) <= 1e-12 * wanted:
        value = knob.unchanged
    elif wanted == 0:
        value = knob.removed
    elif excess(knob.removed) > 0:
        raise UserError(
            f"--method {method.name}: with these settings it cannot shrink the update as far as Antidote does at the "
            "same --alpha: raise --strength, or lower --alpha"
        )
    else:
        value = float(brentq(excess, knob.unchanged, knob.removed, xtol=1e-4))
    return method.settings.model_validate({**given, knob.name: value})
