"""A plan on another grid of noise levels: another step count, shift or solver.

Two things can be kept. The levels: what was computed at sigma 0.83 is computed at the level nearest
to it, so the error stays about the same; with fewer steps between, less is skipped. Or the speed:
at every noise level the same share of the steps is computed as before; the compute steps then lie
further apart in sigma and the error grows. A plan that was made for a speed, as its provenance says
(the presets of SPEEDUPS, searches for a speed-up), keeps the speed; every other plan keeps its
levels. On fewer than FEWEST_STEPS steps every plan computes everything: models of few steps have
nothing to skip, and a plan that computes everything does so on every grid.

A loop may take a part of a run: the second of two samplers, a clip that is denoised from the
middle. Its steps are those of the whole run, and its first one is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isclose

import numpy as np

from profiling_core.errors import PlanError
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.plan import CachePlan
from profiling_core.plan.restrict import part_of, plain_jumps
from profiling_core.plan.schema import Site

SPEEDUPS = {"quality": 1.5, "balanced": 2.0, "fast": 3.0}  # names of plans that mean a speed
FEWEST_STEPS = 12  # of a run, for another plan than one made for its own grid


def regrid(
    plan: CachePlan,
    sigmas: Sequence[float],
    *,
    solver: str,
    shift: float,
    keep_speed: bool | None = None,
    whole_run: Sequence[float] | None = None,
    end: float | None = None,
) -> CachePlan:
    """The plan on the noise levels `sigmas` of a solver; keep_speed None: as its provenance asks.

    sigmas: the levels of a loop's steps; whole_run: the levels of all steps of a run that the loop
    takes a part of; end: the level that it ends at, None for 0 or the whole run's next one. Without
    whole_run a part is recognised by its levels, below the plan's first or above its last: the
    plan's steps in its range are put on it. PlanError for sigmas that are no part of whole_run.

    Steps are matched by sigma, never by index: a plan that computes at sigma 0.83 computes at the
    level nearest to 0.83, whatever its number. Two planned levels that fall on one new step are
    computed once; step 0 and every level outside the planned range are computed. keep_speed: the
    compute steps are first thinned out, or filled up, to the planned share of the steps (`_spread`)
    and then matched, each with a step of its own. The weights of a fitted jump belong to their own
    levels and are left out: its steps are then plain jumps. A plan that is on the levels already is
    returned as it is. `notes` of the result name what was kept and what else to know.
    """
    sigmas = tuple(float(sigma) for sigma in sigmas)
    if whole_run is not None:
        whole = regrid(plan, whole_run, solver=solver, shift=shift, keep_speed=keep_speed)
        part = part_of(whole, _places(sigmas, whole.sigmas))
        return part if end is None else _ending_at(part, end)
    end = end or 0.0
    if keep_speed is None:
        keep_speed = "speedup" in plan.provenance.settings
    if on_grid(plan, sigmas, solver=solver):
        return _ending_at(plan, end)
    planned, everything = plan, _computes_everything(plan)
    inside = _inside(plan.sigmas, (*sigmas, end))
    plan = part_of(plain_jumps(plan), inside)
    if on_grid(plan, sigmas, solver=solver):  # a part of its own grid
        return _ending_at(plan, end)
    below = (*planned.sigmas, planned.end or 0.0)[inside[-1] + 1]
    nearest = [_nearest(sigma, sigmas) for sigma in plan.sigmas]
    one_to_one = nearest == list(range(len(sigmas)))
    outside = _outside(planned.sigmas, sigmas)
    few = len(sigmas) * planned.steps / len(inside) < FEWEST_STEPS and not one_to_one
    kept = f"its {'speed is' if keep_speed else 'noise levels are'} kept"
    sites = plan.sites
    if not one_to_one:
        spread = partial(_spread_sites, below=below) if keep_speed else _nearest_sites
        sites = spread(plan, sigmas, outside)
    if few or everything:
        sites = tuple(_with_steps(site, lambda _: set(range(len(sigmas)))) for site in plan.sites)
        why = "" if everything else ": a run of few steps has nothing to skip"
        kept = f"everything is computed{why}"
    changed = f"{planned.steps} {plan.solver} steps, shift {plan.shift:g}"
    wanted = f"{len(sigmas)} {solver} steps, shift {shift:g}"
    notes = [f"plan {plan.name!r} was made for {changed}; on {wanted} {kept}"]
    whole_plan = plan.steps == planned.steps
    if whole_plan and plan.prediction is not None and not plan.interval_sites and not few:
        notes.append(_search_note(plan, len(sigmas), solver, shift))
    if outside and not one_to_one and not few and not everything:
        notes.append(
            f"{len(outside)} noise levels lie outside the planned range {planned.sigmas[-1]:.4f} "
            f"to {planned.sigmas[0]:.4f} and are computed"
        )
    there = plan.replace(
        steps=len(sigmas),
        sigmas=sigmas,
        end=end or None,
        solver=solver,
        shift=float(shift),
        sites=sites,
        source=f"plan {plan.name!r} on {wanted}",
    )
    return there.model_copy(update={"notes": (*plan.notes, *notes, *_cost_note(plan, there))})


def at_speed(plan: CachePlan, speedup: float) -> CachePlan:
    """The plan with its compute steps spread to 1 / speedup of its steps, as dense as before.

    Only where the whole prediction is computed or not; PlanError elsewhere, and below 1.
    """
    if not speedup >= 1:
        raise PlanError(f"speed-up {speedup:g}: give 1 or more, a plan only leaves steps out")
    if plan.prediction is None or plan.interval_sites:
        raise PlanError(
            f"plan {plan.name!r} reuses blocks, its speed is fixed: take quality, balanced or fast "
            "for a speed-up of your own"
        )
    plan, steps = plain_jumps(plan), list(range(plan.steps))

    def there(computed: tuple[int, ...]) -> set[int]:
        return {0, *_spread(computed, (*plan.sigmas, 0.0), plan.sigmas, steps, 1 / speedup)}

    settings = plan.provenance.settings | {"speedup": speedup}
    note = f"plan {plan.name!r} is spread to {speedup:g}x, not searched for this speed"
    return plan.replace(
        sites=[_with_steps(plan.sites[0], there)],
        provenance=plan.provenance.model_copy(update={"settings": settings}),
        notes=(*plan.notes, note),
    )


def on_grid(plan: CachePlan, sigmas: Sequence[float], *, solver: str) -> bool:
    """Are these the plan's own noise levels, and a solver that its corrections are made for?"""
    site = plan.prediction
    bound = site is not None and (site.skip == "corrected" or site.solver_weights is not None)
    if len(sigmas) != plan.steps or (bound and solver != plan.solver):
        return False
    pairs = zip(sigmas, plan.sigmas, strict=True)
    return all(isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) for a, b in pairs)


def _ending_at(plan: CachePlan, end: float) -> CachePlan:
    """The plan in a loop whose last step leads to `end`."""
    return plan if _same(end, plan.end or 0.0) else plan.replace(end=end or None)


def _computes_everything(plan: CachePlan) -> bool:
    every = [steps for site in plan.sites for steps in site.compute_steps.values()]
    return all(len(steps) == plan.steps for steps in every)


def _inside(planned: tuple[float, ...], bounds: tuple[float, ...]) -> list[int]:
    """The planned steps that a loop over these levels takes, its end included; else the nearest.

    All of them, unless it begins more than a step of its own below the first planned level, or at
    another planned level, or ends above the last one.
    """
    first, steps = bounds[0], range(len(planned))
    late = 2 * first - bounds[1] < planned[0] or any(_same(first, s) for s in planned[1:])
    found = [
        step
        for step in steps
        if (not late or planned[step] < first or _same(planned[step], first))
        and (bounds[-1] < planned[step] and not _same(planned[step], bounds[-1]))
    ]
    return found or [min(steps, key=lambda step: abs(planned[step] - first))]


def _places(sigmas: tuple[float, ...], whole: tuple[float, ...]) -> list[int]:
    """The steps of a whole run that a part of it takes; PlanError where they do not follow."""
    first = next((n for n, sigma in enumerate(whole) if _same(sigma, sigmas[0])), 0)
    there = whole[first : first + len(sigmas)]
    if len(there) < len(sigmas) or not all(map(_same, there, sigmas)):
        raise PlanError(
            f"{len(sigmas)} noise levels from {sigmas[0]:.4f} to {sigmas[-1]:.4f} are no part of "
            f"the whole run's {len(whole)} from {whole[0]:.4f} to {whole[-1]:.4f}: take the whole "
            "run's levels as its scheduler has them, or leave them out"
        )
    return list(range(first, first + len(sigmas)))


def _same(a: float, b: float) -> bool:
    return isclose(a, b, rel_tol=1e-5, abs_tol=1e-7)


def _cost_note(plan: CachePlan, there: CachePlan) -> list[str]:
    """The same noise levels on another grid are another share of its steps: a note."""
    before, after = speedup_flops(plan), speedup_flops(there)
    if isclose(before, after, rel_tol=0.02):
        return []
    return [f"the ideal speed-up is {after:.2f}x there instead of {before:.2f}x"]


def _search_note(plan: CachePlan, steps: int, solver: str, shift: float) -> str:
    """How to get a plan for this grid from the profile."""
    options = [f"--speedup {speedup_flops(plan):.3g}"]
    if steps != plan.steps:
        options.append(f"--for-steps {steps}")
    if not isclose(shift, plan.shift):
        options.append(f"--for-shift {shift:g}")
    if solver != plan.solver:
        options.append(f"--for-solver {solver}")
    return (
        "a plan for this grid at the planned speed: profiling-dit plan --profile "
        f"PROFILE {' '.join(options)} -o PLAN.json"
    )


def _nearest(sigma: float, sigmas: tuple[float, ...]) -> int:
    return min(range(len(sigmas)), key=lambda step: abs(sigmas[step] - sigma))


def _outside(planned: tuple[float, ...], sigmas: tuple[float, ...]) -> set[int]:
    """Steps beyond the planned range by more than half a planned step at that end."""
    if len(planned) == 1:
        return {step for step in range(len(sigmas)) if step != _nearest(planned[0], sigmas)}
    high = planned[0] + max(planned[0] - planned[1], 1e-3) / 2
    low = planned[-1] - (planned[-2] - planned[-1]) / 2
    return {step for step, sigma in enumerate(sigmas) if not low <= sigma <= high}


def _nearest_sites(
    plan: CachePlan, sigmas: tuple[float, ...], outside: set[int]
) -> tuple[Site, ...]:
    """Every compute step at the nearest level."""
    nearest = [_nearest(sigma, sigmas) for sigma in plan.sigmas]
    return tuple(
        _with_steps(site, lambda computed: {0, *outside, *(nearest[step] for step in computed)})
        for site in plan.sites
    )


def _spread_sites(
    plan: CachePlan, sigmas: tuple[float, ...], outside: set[int], *, below: float
) -> tuple[Site, ...]:
    """Every site with its share of the steps; intervals within the steps of the prediction."""
    found: dict[int, Site] = {}
    order = sorted(range(len(plan.sites)), key=lambda n: plan.sites[n] is not plan.prediction)
    visited = None
    for number in order:
        site = plan.sites[number]
        within = list(range(len(sigmas))) if visited is None else visited

        def there(computed: tuple[int, ...], within: list[int] = within) -> set[int]:
            own = _spread(computed, (*plan.sigmas, below), sigmas, within)
            return {0, *(outside & set(within)), *own}

        found[number] = _with_steps(site, there)
        if site is plan.prediction:
            every = [set(steps) for steps in found[number].compute_steps.values()]
            visited = sorted(set.intersection(*every))
    return tuple(found[number] for number in range(len(plan.sites)))


def _spread(
    computed: tuple[int, ...],
    planned: tuple[float, ...],
    sigmas: tuple[float, ...],
    within: list[int],
    share: float | None = None,
) -> list[int]:
    """The planned share of the steps, or `share`, chosen from `within`.

    planned: levels, with the one after. Counted along the plan, compute step i is number i; the new
    ones are the numbers i K / K', K of the plan and K' of the new steps, at the noise level where
    the count gets there.
    """
    steps = len(planned) - 1
    share = len(computed) / steps if share is None else share
    count = min(max(1, round(share * len(sigmas))), len(within))
    numbers = [i * len(computed) / count for i in range(count)]
    places = np.interp(numbers, range(len(computed) + 1), [*computed, steps])
    levels = np.interp(places, range(steps + 1), planned)
    free = np.array([sigmas[step] for step in within])
    chosen = [int(np.abs(free - level).argmin()) for level in levels]
    for i in range(1, count):  # each its own: later where the one before took it,
        chosen[i] = max(chosen[i], chosen[i - 1] + 1)
    for i in reversed(range(count)):  # earlier where that ran out of steps
        chosen[i] = min(chosen[i], len(within) - count + i)
    return [within[place] for place in chosen]


def _with_steps(site: Site, there: Callable[[tuple[int, ...]], set[int]]) -> Site:
    steps = {branch: tuple(sorted(there(own))) for branch, own in site.compute_steps.items()}
    return site.model_copy(update={"compute_steps": steps})
