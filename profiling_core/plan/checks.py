"""What must hold between the parts of a plan; each check raises ValueError with the place."""

from __future__ import annotations

import math
from itertools import pairwise

from profiling_core.plan import schedule
from profiling_core.plan.cost import expected_cost
from profiling_core.plan.schema import IntervalSite, PlanDocument, PredictionSite


def check_grid(plan: PlanDocument) -> None:
    if len(plan.sigmas) != plan.steps:
        raise ValueError(f"{len(plan.sigmas)} sigmas for {plan.steps} steps")
    for step, (before, after) in enumerate(pairwise(plan.sigmas)):
        if not after < before:
            raise ValueError(f"sigmas must fall, but sigmas[{step + 1}] = {after} after {before}")
    if plan.end is not None and not plan.end < plan.sigmas[-1]:
        raise ValueError(f"end {plan.end} does not lie below the last of sigmas {plan.sigmas[-1]}")


def check_sites(plan: PlanDocument) -> None:
    for number, site in enumerate(plan.sites):
        place = f"sites[{number}]"
        if set(site.compute_steps) != set(plan.branches) or "cond" not in site.compute_steps:
            raise ValueError(
                f"{place}.compute_steps: every site names the same branches, cond first"
            )
        for branch, steps in site.compute_steps.items():
            try:
                schedule.explicit(plan.steps, steps)
            except ValueError as error:
                raise ValueError(f"{place}.compute_steps.{branch}: {error}") from None
            if not steps or steps[0] != 0:
                raise ValueError(
                    f"{place}.compute_steps.{branch}: step 0 must be computed, "
                    "a reuse before any compute step has no anchor"
                )
        if site.kind == "intervals":
            _check_intervals(plan, site, place)
        if site.kind == "prediction" and site.solver_weights is not None:
            _check_solver_weights(plan, site, site.solver_weights, place)
        if site.skip == "corrected" and plan.solver != "euler":
            raise ValueError(
                f"{place}.skip: 'corrected' is made for Euler's steps, this plan's solver is "
                f"{plan.solver}: take 'jump' or 'linear'"
            )


def _check_intervals(plan: PlanDocument, site: IntervalSite, place: str) -> None:
    length = plan.model.block_lists.get(site.block_list)
    if length is None:
        known = ", ".join(plan.model.block_lists)
        raise ValueError(f"{place}.block_list: {site.block_list!r} is not one of {known}")
    if site.intervals[-1][1] >= length:
        raise ValueError(
            f"{place}.intervals: block {site.intervals[-1][1]} of {length} {site.block_list}"
        )


def _check_solver_weights(
    plan: PlanDocument,
    site: PredictionSite,
    weights: dict[str, tuple[float, float, float]],
    place: str,
) -> None:
    if site.skip != "jump" or plan.solver != "unipc":
        raise ValueError(
            f"{place}.solver_weights: go with skip 'jump' and the solver unipc, found "
            f"{site.skip!r} and {plan.solver}: search a plan for it"
        )
    wrong = set(weights) ^ {str(step) for step in site.compute_steps["cond"]}
    if wrong:
        raise ValueError(
            f"{place}.solver_weights: expected the compute steps, step {min(wrong)} is missing or "
            "no compute step"
        )


def check_combination(plan: PlanDocument) -> None:
    if sum(site.kind == "prediction" for site in plan.sites) > 1:
        raise ValueError("sites: more than one prediction site")
    taken: dict[tuple[str, int], int] = {}
    for number, site in enumerate(plan.sites):
        if site.kind != "intervals":
            continue
        for first, last in site.intervals:
            for block in range(first, last + 1):
                other = taken.setdefault((site.block_list, block), number)
                if other != number:
                    raise ValueError(
                        f"sites[{number}].intervals: {site.block_list} {block} is in "
                        f"sites[{other}] as well"
                    )
    if plan.prediction is None:
        return
    if plan.jumps and len({plan.prediction.compute_steps[b] for b in plan.branches}) > 1:
        raise ValueError("sites: a jump skips the step for all branches, compute_steps must agree")
    for number, site in enumerate(plan.sites):
        for branch in plan.branches:
            stray = set(site.compute_steps[branch]) - set(plan.prediction.compute_steps[branch])
            if stray:
                raise ValueError(
                    f"sites[{number}].compute_steps.{branch}: step {min(stray)} is a reuse step of "
                    "the prediction, no block runs there"
                )


def check_expected(plan: PlanDocument) -> None:
    if plan.expected is None:
        return
    found = expected_cost(plan, predicted_error=plan.expected.predicted_error)
    for key in ("block_runs", "block_runs_full", "speedup_flops", "anchors"):
        said, is_ = getattr(plan.expected, key), getattr(found, key)
        same = math.isclose(said, is_, rel_tol=1e-3) if key == "speedup_flops" else said == is_
        if not same:
            raise ValueError(
                f"expected.{key}: the file says {said}, its steps give {is_}; "
                "after editing a plan by hand delete its 'expected'"
            )
