"""A plan on another grid of noise levels: another step count, shift or solver."""

from __future__ import annotations

from math import isclose
from typing import TYPE_CHECKING

from pydantic import ValidationError

from profiling_core.checked import PlanError, first_mistake
from profiling_core.cost import expected_cost, speedup_flops

if TYPE_CHECKING:
    from profiling_core.plan import CachePlan, Site


def carry_over(
    plan: CachePlan, sigmas: tuple[float, ...], *, solver: str, shift: float
) -> CachePlan:
    """The plan whose compute steps are those of `sigmas` nearest to the planned noise levels.

    Steps are matched by sigma, never by index: a plan that computes at sigma 0.83 computes at the
    level nearest to 0.83, whatever its number. Two planned levels that fall on one new step are
    computed once; step 0 and every level outside the planned range are computed. Fitted weights
    belong to their own levels and are refused on a grid where the steps do not match one to one.
    `notes` of the result say what the user should know.
    """
    bound = plan.prediction is not None and plan.prediction.skip == "corrected"
    same_solver = solver == plan.solver or not bound
    if (
        same_solver
        and len(sigmas) == plan.steps
        and all(
            isclose(a, b, rel_tol=1e-5, abs_tol=1e-7)
            for a, b in zip(sigmas, plan.sigmas, strict=True)
        )
    ):
        return plan
    nearest = [_nearest(sigma, sigmas) for sigma in plan.sigmas]
    one_to_one = nearest == list(range(len(sigmas)))
    outside = _outside(plan.sigmas, sigmas)
    sites = tuple(_carry_site(plan, site, nearest, one_to_one, outside) for site in plan.sites)
    changed = f"{plan.steps} {plan.solver} steps, shift {plan.shift:g}"
    wanted = f"{len(sigmas)} {solver} steps, shift {shift:g}"
    notes = [f"plan {plan.name!r} was made for {changed}; carried over by sigma to {wanted}"]
    if outside and not one_to_one:
        notes.append(
            f"{len(outside)} noise levels lie outside the planned range {plan.sigmas[-1]:.4f} to "
            f"{plan.sigmas[0]:.4f} and are computed"
        )
    fields = {
        "format": plan.format,
        "name": plan.name,
        "model": plan.model,
        "steps": len(sigmas),
        "sigmas": sigmas,
        "solver": solver,
        "shift": float(shift),
        "storage": plan.storage,
        "storage_place": plan.storage_place,
        "sites": sites,
        "provenance": plan.provenance,
        "notes": (*plan.notes, *notes),
    }
    try:
        carried = type(plan).model_validate(fields)
    except ValidationError as error:
        raise PlanError(
            f"plan {plan.name!r} cannot be carried to {wanted}: {first_mistake(error)}"
        ) from None
    update = {
        "expected": expected_cost(carried),
        "notes": (*carried.notes, *_cost_note(plan, carried)),
    }
    return carried.model_copy(update=update)


def _cost_note(plan: CachePlan, carried: CachePlan) -> list[str]:
    """The same noise levels on another grid are another share of its steps: say so."""
    before, after = speedup_flops(plan), speedup_flops(carried)
    if isclose(before, after, rel_tol=0.02):
        return []
    note = f"the ideal speed-up is {after:.2f}x there instead of {before:.2f}x"
    if after < 1.05:
        note += ": too few steps are left to skip, take a plan that was made for this step count"
    return [note]


def _nearest(sigma: float, sigmas: tuple[float, ...]) -> int:
    return min(range(len(sigmas)), key=lambda step: abs(sigmas[step] - sigma))


def _outside(planned: tuple[float, ...], sigmas: tuple[float, ...]) -> set[int]:
    """Steps beyond the planned range by more than half a planned step at that end."""
    if len(planned) == 1:
        return {step for step in range(len(sigmas)) if step != _nearest(planned[0], sigmas)}
    high = planned[0] + max(planned[0] - planned[1], 1e-3) / 2
    low = planned[-1] - (planned[-2] - planned[-1]) / 2
    return {step for step, sigma in enumerate(sigmas) if not low <= sigma <= high}


def _carry_site(
    plan: CachePlan, site: Site, nearest: list[int], one_to_one: bool, outside: set[int]
) -> Site:
    if site.skip == "weights" and not one_to_one:
        raise PlanError(
            f"plan {plan.name!r} has weights fitted to its own {plan.steps} noise levels; on other "
            "levels take a plan that forecasts 'hold' or 'linear', or search one for this grid"
        )
    if one_to_one:
        return site
    steps = {
        branch: tuple(sorted({0, *outside, *(nearest[step] for step in computed)}))
        for branch, computed in site.compute_steps.items()
    }
    return site.model_copy(update={"compute_steps": steps})
