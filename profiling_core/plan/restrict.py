"""A plan on some of its own steps, or for other guidance branches than it was written for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiling_core.errors import PlanError
from profiling_core.plan.plan import CachePlan
from profiling_core.plan.schema import BRANCHES, Site
from profiling_core.plan.site_schedule import computes


def on_visited_steps(plan: CachePlan) -> CachePlan:
    """What is left of a plan that jumps once its solver is given only the levels it visits.

    There every step computes; sites of intervals stay. A plan that does not jump stays as it is.
    """
    if not plan.jumps:
        return plan
    sites = [_restricted(plan, site, plan.solver_steps) for site in plan.interval_sites]
    return _on(plan, plan.solver_steps, sites, plan.end)


def plain_jumps(plan: CachePlan) -> CachePlan:
    """A fitted plan without the weights of its jumps, with a note; every other plan as it is."""
    site = plan.prediction
    if site is None or site.solver_weights is None:
        return plan
    note = (
        f"plan {plan.name!r} has weights for steps of {plan.solver} between its own noise levels; "
        "this run has other levels, another scheduler or two models: its steps are plain jumps here"
    )
    jump = site.model_copy(update={"solver_weights": None})
    sites = [jump if one is site else one for one in plan.sites]
    return plan.replace(sites=sites, notes=(*plan.notes, note))


def also_computed(plan: CachePlan, steps: Sequence[int]) -> CachePlan:
    """The plan with `steps` computed as well: the first ones of the models that a loop changes to.

    A fitted jump becomes a plain one.
    """
    sites = [
        site.model_copy(
            update={
                "compute_steps": {
                    branch: tuple(sorted({*own, *steps}))
                    for branch, own in site.compute_steps.items()
                }
            }
        )
        for site in plan.sites
    ]
    if sites == list(plan.sites):
        return plan
    if plan.solver_weights:
        return also_computed(plain_jumps(plan), steps)
    numbers = ", ".join(str(step) for step in steps if step)
    note = f"step {numbers} is computed as well: another model begins there"
    return plan.replace(sites=sites, notes=(*plan.notes, note))


def part_of(plan: CachePlan, steps: Sequence[int]) -> CachePlan:
    """The plan on a part of its run, with a note; a fitted jump becomes a plain one."""
    if list(steps) == list(range(plan.steps)):
        return plan
    part = on_steps(plain_jumps(plan), steps)
    note = (
        f"this loop takes steps {steps[0]} to {steps[-1]} of {plan.steps}, and computes its first"
    )
    return part.model_copy(update={"notes": (*part.notes, note)})


def on_steps(plan: CachePlan, steps: Sequence[int]) -> CachePlan:
    """The plan on some of its steps, for a model that is called at these alone.

    Nothing is reused across its first step, which is computed.
    """
    if list(steps) == list(range(plan.steps)):
        return plan
    end = (*plan.sigmas, plan.end)[steps[-1] + 1]
    return _on(plan, steps, [_restricted(plan, site, steps) for site in plan.sites], end)


def for_both_branches(plan: CachePlan) -> CachePlan:
    """A plan of one branch with the same steps for the other."""
    if set(plan.branches) == set(BRANCHES) or not plan.sites:
        return plan
    sites = [_for_both(site.model_dump(mode="json", exclude_none=True)) for site in plan.sites]
    return plan.replace(sites=sites, predicted_error=plan.predicted_error)


def plan_of_both(plan: CachePlan) -> CachePlan:
    """The plan with its branches as one; PlanError when they do not skip alike."""
    if len(plan.branches) == 1:
        return plan
    sites = [site.model_dump(mode="json", exclude_none=True) for site in plan.sites]
    for site in sites:
        first, *others = (site["compute_steps"][branch] for branch in plan.branches)
        if any(other != first for other in others):
            raise PlanError(
                f"plan {plan.name!r} treats cond and uncond differently (compute_steps): ComfyUI "
                "has one prediction of both, and with --cfg_size one process would idle; take a "
                "plan that skips both alike, or leave --cfg_size out"
            )
        site["compute_steps"] = {plan.branches[0]: first}
    return plan.replace(sites=sites, predicted_error=plan.predicted_error)


def _for_both(site: dict[str, Any]) -> dict[str, Any]:
    return site | {"compute_steps": dict.fromkeys(BRANCHES, site["compute_steps"]["cond"])}


def _restricted(plan: CachePlan, site: Site, steps: Sequence[int]) -> dict[str, Any]:
    """A site's document on some steps, which get the numbers of their places."""
    document = site.model_dump(mode="json", exclude_none=True)
    computed = {
        branch: [n for n, s in enumerate(steps) if n == 0 or s in computes(plan, site, branch)]
        for branch in plan.branches
    }
    return document | {"compute_steps": computed}


def _on(
    plan: CachePlan, steps: Sequence[int], sites: Sequence[dict[str, Any]], end: float | None
) -> CachePlan:
    sigmas = [plan.sigmas[step] for step in steps]
    return plan.replace(steps=len(steps), sigmas=sigmas, sites=sites, end=end)
