"""`python -m profiling_core plan --for-steps ...`: plans for a grid that was not recorded.

Either a plan is searched there, or, with --carry, one that was made elsewhere is carried over, and
what that is predicted to lose against the search is told.
"""

from __future__ import annotations

import argparse
from math import log10
from typing import TYPE_CHECKING

from profiling_core.carry_over import carry_over
from profiling_core.checked import PlanError
from profiling_core.cost import expected_cost, speedup_flops
from profiling_core.other_grid import Grid, on_grid, recorded_grid
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile

if TYPE_CHECKING:
    from profiling_core.search import PlanSearch

GRID_OPTIONS = ("for_steps", "for_shift", "for_solver", "carry", "keep")
KEPT = ("levels", "speed")


def add_grid_options(one: argparse.ArgumentParser) -> None:
    """Add GRID_OPTIONS to the parser of `plan`."""
    grid = one.add_argument_group("another grid than the profile's (search)")
    grid.add_argument("--for-steps", type=int, metavar="N", help="plan for this step count")
    grid.add_argument("--for-shift", type=float, metavar="X", help="plan for this shift")
    grid.add_argument("--for-solver", metavar="NAME", help="plan for this solver: unipc, dpm++")
    grid.add_argument(
        "--carry",
        metavar="PLAN",
        help="no search: carry this plan file over, as a run there does, and say what is lost",
    )
    grid.add_argument(
        "--keep",
        choices=KEPT,
        help="with --carry: the computed noise levels (default, as in a run) or the speed",
    )


def asked_grid(profile: Profile, args: argparse.Namespace) -> Profile:
    """The profile on the grid of the options; ProfileError for one that the model lacks."""
    return on_grid(profile, args.for_steps, args.for_shift, args.for_solver)


def carried_plan(profile: Profile, args: argparse.Namespace) -> tuple[CachePlan, list[str]]:
    """The plan of --carry on the profile's grid, and what either way of keeping it loses there."""
    from profiling_core.search import PlanSearch

    plan, grid = CachePlan.load(args.carry), recorded_grid(profile)
    _check_fits(plan, profile)
    search, found, rows = PlanSearch(profile), {}, []
    for kept in KEPT:
        carried = carry_over(
            plan, grid.sigmas, solver=grid.solver, shift=grid.shift, keep_speed=kept == "speed"
        )
        found[kept] = carried
        rows.append(_row(kept, carried, search))
    kept = args.keep or KEPT[0]
    return _written(found[kept], kept, plan, search, args.name), [
        f"carried over from {_grid_of(plan)} to {grid}, the {kept} kept",
        "",
        "kept    computed  speed-up  predicted  best found  lost",
        *rows,
        "predicted relative error of the final latent, 80th percentile of the runs; best found: by "
        "a search there with as many computed steps (--speedup instead of --carry)",
        "",
    ]


def refuse_with_carry(given: list[str]) -> None:
    """PlanError when options of the search stand beside --carry; given: their names."""
    others = [name for name in given if name not in GRID_OPTIONS]
    if others:
        raise PlanError(
            f"--{spelled(others[0])} is for a search, --carry takes the plan as it is: "
            "leave one of the two out"
        )


def spelled(name: str) -> str:
    """An option of `plan` as it is written on the command line, without its dashes."""
    return name if name == "ckpt_dir" else name.replace("_", "-")


# -- parts


def _check_fits(plan: CachePlan, profile: Profile) -> None:
    subject = profile.recorded
    if (
        plan.model.block_lists != subject.model.block_lists
        or plan.model.width != subject.model.width
    ):
        raise PlanError(
            f"plan {plan.name!r} is for {plan.model.name}, the profile of {subject.model.name}: "
            "take a plan and a profile of one model"
        )
    if plan.sites and plan.branches != subject.branches:
        raise PlanError(
            f"plan {plan.name!r} knows the branches {', '.join(plan.branches)}, the profile "
            f"{', '.join(subject.branches)}: take a plan and a profile of one model"
        )


def _row(kept: str, carried: CachePlan, search: PlanSearch) -> str:
    error, count = search.predicted(carried), _computed(carried)
    head = f"{kept:<6}  {count:>8}  {f'{speedup_flops(carried):.2f}x':>8}  "
    if count == carried.steps:
        return f"{head}nothing is left to skip"
    best = min(search.point_of(skip, count).error for skip in search.skips)
    return f"{head}{error:>9.4f}  {best:>10.4f}  {20 * log10(error / best):.1f} dB"


def _computed(plan: CachePlan) -> int:
    return len(plan.prediction.compute_steps["cond"])


def _written(
    carried: CachePlan, kept: str, plan: CachePlan, search: PlanSearch, name: str | None
) -> CachePlan:
    """The carried-over plan with its predicted error and its provenance."""
    made = plan.provenance
    source = (
        f"{made.source}; carried over from {_grid_of(plan)}, the {kept} kept; error predicted on "
        f"{search.profile.origin}"
    )
    update = {"source": source, "profile_sha256": search.profile.sha256()}
    return carried.model_copy(
        update={
            "name": name or plan.name,
            "provenance": made.model_copy(update=update),
            "expected": expected_cost(carried, search.predicted(carried)),
        }
    )


def _grid_of(plan: CachePlan) -> Grid:
    return Grid(plan.solver, plan.shift, plan.sigmas)
