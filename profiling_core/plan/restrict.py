"""A plan on some of its own steps, or for other guidance branches than it was written for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.plan import BRANCHES, Site


def on_visited_steps(plan: CachePlan) -> CachePlan:
    """What is left of a plan that jumps once its solver is given only the levels it visits.

    There every step computes; sites of intervals stay. A plan that does not jump stays as it is.
    """
    if not plan.jumps:
        return plan
    sites = [_restricted(plan, site, plan.solver_steps) for site in plan.interval_sites]
    return _rebuilt(plan, plan.solver_steps, sites)


def on_steps(plan: CachePlan, steps: Sequence[int]) -> CachePlan:
    """The plan on some of its steps, for a model that is called at these alone.

    Nothing is reused across its first step, which is computed. Fitted weights of anchors that lie
    before it give way to the line in sigma.
    """
    if list(steps) == list(range(plan.steps)):
        return plan
    return _rebuilt(plan, steps, [_restricted(plan, site, steps) for site in plan.sites])


def for_both_branches(plan: CachePlan) -> CachePlan:
    """A plan of one branch with the same steps for the other."""
    if set(plan.branches) == set(BRANCHES) or not plan.sites:
        return plan
    sites = [_for_both(site.model_dump(mode="json", exclude_none=True)) for site in plan.sites]
    error = plan.expected.predicted_error if plan.expected else None
    return _rebuilt(plan, range(plan.steps), sites, predicted_error=error)


def plan_of_both(plan: CachePlan) -> CachePlan:
    """The plan with its branches as one; PlanError when they do not skip alike."""
    if len(plan.branches) == 1:
        return plan
    document = plan.model_dump(mode="json", exclude_none=True)
    for site in document["sites"]:
        for name in ("compute_steps", "weights", "given"):
            if name not in site:
                continue
            first, *others = (site[name][branch] for branch in plan.branches)
            if any(other != first for other in others):
                raise PlanError(
                    f"plan {plan.name!r} treats cond and uncond differently ({name}): with its "
                    "branches on different processes it would idle, leave --cfg_size out"
                )
            site[name] = {plan.branches[0]: first}
    expected = document.pop("expected", {})
    fields = {name: value for name, value in document.items() if name != "format"}
    merged = CachePlan.build(**fields, predicted_error=expected.get("predicted_error"))
    return merged.model_copy(update={"notes": plan.notes})


def _for_both(site: dict[str, Any]) -> dict[str, Any]:
    named = {key: site[key] for key in ("compute_steps", "weights", "given") if key in site}
    return site | {key: dict.fromkeys(BRANCHES, value["cond"]) for key, value in named.items()}


def _restricted(plan: CachePlan, site: Site, steps: Sequence[int]) -> dict[str, Any]:
    """A site's document on some steps, which get the numbers of their places."""
    document = site.model_dump(mode="json", exclude_none=True)
    computed = {
        branch: [n for n, s in enumerate(steps) if n == 0 or s in plan.computes(site, branch)]
        for branch in plan.branches
    }
    document |= {"compute_steps": computed}
    document.pop("given", None)
    if site.skip == "weights":
        weights = {b: _weights(plan, site, b, steps, computed[b]) for b in plan.branches}
        document |= {"weights": weights}
    return document


def _weights(
    plan: CachePlan, site: Site, branch: str, steps: Sequence[int], computed: Sequence[int]
) -> dict[str, list[float]]:
    """Of every reuse step, newest anchor first."""
    own, found = sorted(plan.computes(site, branch)), {}
    for place, step in enumerate(steps):
        if place in computed:
            continue
        weights = site.weights[branch][str(step)]
        before = [anchor for anchor in own if anchor < step][-len(weights) :]
        anchors = [steps[c] for c in computed if c < place]
        if not set(before) <= set(anchors):
            weights = [weight for _, weight in plan.line(step, anchors)]
        found[str(place)] = list(weights)
    return found


def _rebuilt(
    plan: CachePlan,
    steps: Sequence[int],
    sites: Sequence[dict[str, Any]],
    **same: Any,
) -> CachePlan:
    rebuilt = CachePlan.build(
        name=plan.name,
        model=plan.model,
        steps=len(steps),
        sigmas=[plan.sigmas[step] for step in steps],
        solver=plan.solver,
        shift=plan.shift,
        storage=plan.storage,
        storage_place=plan.storage_place,
        sites=list(sites),
        provenance=plan.provenance,
        **same,
    )
    return rebuilt.model_copy(update={"notes": plan.notes})
