"""`python -m profiling_core plan --guard`: its options, and the thresholds from the profile."""

from __future__ import annotations

import argparse
from math import isfinite

from profiling_core.plan import CachePlan, PlanError
from profiling_core.profile import Profile
from profiling_core.usual_drift import thresholds, worst_ratios

GUARD_OPTIONS = ("guard", "guard_extra")


def add_guard_options(one: argparse.ArgumentParser) -> None:
    """Add --guard and --guard-extra to the parser of `plan`."""
    guard = one.add_argument_group("drift guard (search)")
    guard.add_argument(
        "--guard",
        type=float,
        metavar="FACTOR",
        help="compare forecasts with predictions at run time; exceeded is FACTOR times what the "
        "median run of the profile deviates at the same step, for example 2",
    )
    guard.add_argument(
        "--guard-extra",
        action="store_const",
        const=True,
        help="where it is exceeded, compute one more step of the clip",
    )


def guarded_plan(profile: Profile, plan: CachePlan, args: argparse.Namespace) -> CachePlan:
    """The plan with the guard that the options ask for; PlanError when they do not fit."""
    factor, extra = args.guard, bool(args.guard_extra)
    if factor is None:
        if extra:
            raise PlanError("--guard-extra goes with --guard FACTOR, for example --guard 2")
        return plan
    if not (factor > 0 and isfinite(factor)):
        raise PlanError(f"--guard {factor:g}: expected a factor above 0, for example 2")
    if plan.prediction is None:
        raise PlanError("--guard: the plan computes every step, there is nothing to compare")
    return plan.guarded(thresholds(profile, plan, factor), extra=extra)


def guard_lines(profile: Profile, plan: CachePlan) -> list[str]:
    """What the profile's own runs reach, to choose a factor by."""
    if plan.guard is None:
        return []
    reached = ", ".join(f"{ratio:.2f}" for ratio in sorted(worst_ratios(profile, plan)))
    return [f"guard: the profile's runs reach {reached} times the median run's deviation", ""]
