"""From a method and its settings to the new values of every site. Pure: nothing is written.

Legend: O rows and I columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from scipy.optimize import brentq
from torch import Tensor

from antidote_llm.calibration.moments import Moments
from antidote_llm.models.sites import Site
from antidote_llm.repair.antidote import antidote
from antidote_llm.repair.method import MatchedKnob, RepairMethod, SiteInputs
from antidote_llm.repair.selection import select
from antidote_llm.repair.update_norm import total_norm, update_norms


@dataclass(frozen=True)
class Problem:
    """What a repair starts from.

    Attributes:
        sites: In network order.
        weights: Their values as they lie in the file, by site name.
        moments: The statistics of the harmful data, where they were collected.
    """

    sites: Sequence[Site]
    weights: Mapping[str, Tensor]
    moments: Moments | None


@dataclass(frozen=True)
class Plan:
    """What a repair does.

    Attributes:
        settings: The settings, solved-for values filled in.
        edited: The new values by site name, in the file's type.
        chosen: The mask of chosen entries by site name; None for methods that do not choose.
    """

    settings: BaseModel
    edited: Mapping[str, Tensor]
    chosen: Mapping[str, Tensor] | None


def needs_harmful(method: RepairMethod, settings: BaseModel) -> bool:
    """Whether a plan needs the statistics of the harmful data: for the method's score, or to match Antidote's norm."""
    return method.needs_harmful or (method.matched is not None and method.matched.wanted(settings))


def plan(problem: Problem, method: RepairMethod, settings: BaseModel) -> Plan:
    """Compute the new values of every site."""
    if method.matched is not None and method.matched.wanted(settings):
        settings = _match(problem, method, method.matched, settings)
    if method.kind == "solve":
        edited = {}
        for site in problem.sites:
            weight_OI = problem.weights[site.name]
            edited[site.name] = method.function(_inputs(problem, site), **method.arguments(settings)).to(
                weight_OI.dtype
            )
        return Plan(settings, edited, None)
    return _plan_scored(problem, method, settings)


def _plan_scored(problem: Problem, method: RepairMethod, settings: BaseModel) -> Plan:
    given = settings.model_dump()
    scores = {
        site.name: method.function(_inputs(problem, site), **method.arguments(settings)) for site in problem.sites
    }
    chosen = select(
        problem.sites,
        scores,
        alpha=given["alpha"],
        scope=given["scope"],
        rounding=given["rounding"],
        without_evidence=given["without_evidence"],
    )
    edited = {
        site.name: weaken(problem.weights[site.name], chosen[site.name], given["strength"]) for site in problem.sites
    }
    return Plan(settings, edited, chosen)


def weaken(weight_OI: Tensor, chosen_OI: Tensor, strength: float) -> Tensor:
    """Multiply the chosen entries by ``1 - strength``; all other entries keep their bits."""
    if strength == 1:
        return weight_OI.masked_fill(chosen_OI, 0)
    return torch.where(chosen_OI, weight_OI * (1 - strength), weight_OI)


def _inputs(problem: Problem, site: Site) -> SiteInputs:
    weight_OI = problem.weights[site.name]
    return SiteInputs(site, weight_OI if weight_OI.dtype == torch.float64 else weight_OI.float(), problem.moments)


def _match(problem: Problem, method: RepairMethod, knob: MatchedKnob, settings: BaseModel) -> BaseModel:
    """Solve for the setting that leaves Antidote's update norm at the same alpha, scope and rounding.

    A count moves in steps and cannot follow exactly; the norm that came of it is in the record. Where Antidote makes
    the norm no smaller, because what it removed had cancelled something, nothing is changed.
    """
    given = settings.model_dump()
    reference = plan(
        problem, antidote, antidote.configure({name: given[name] for name in ("alpha", "scope", "rounding")})
    )
    wanted = total_norm(update_norms(problem.sites, reference.edited))

    def excess(value: float) -> float:
        trial = method.settings.model_validate({**given, knob.name: value})
        edited = (
            _plan_scored(problem, method, trial) if method.kind == "score" else plan(problem, method, trial)
        ).edited
        return total_norm(update_norms(problem.sites, edited)) - wanted

    if excess(knob.unchanged) <= 1e-12 * wanted:
        value = knob.unchanged
    elif wanted == 0:
        value = knob.removed
    else:
        value = float(brentq(excess, knob.unchanged, knob.removed, xtol=1e-4))
    return method.settings.model_validate({**given, knob.name: value})
